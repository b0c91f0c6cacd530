"""The corpora of data=real: their sizes, licences, and that held-out texts are others than those for training."""

import json
import re
from collections import Counter
from statistics import median

import pytest

from tests.conftest import ROOT, read_jsonl
from unlearn.real import build

DATA = ROOT / "unlearn/real/data"
NAMES = ("wikipedia", "security", "microbiology")


def texts(name):
    return [row["text"] for row in read_jsonl(DATA / f"{name}.jsonl")]


@pytest.mark.parametrize("name", NAMES)
def test_held_out_texts_are_others(name):
    trained, held_out = texts(name), texts(f"{name}-heldout")
    assert not {text[:60] for text in trained} & {text[:60] for text in held_out}
    assert len(set(trained + held_out)) == len(trained) + len(held_out)
    assert all(build.FEWEST <= len(text.split()) <= build.MOST for text in trained + held_out)


def test_near_texts_are_those_that_the_retained_ones_leave_out():
    near, trained = texts("wikipedia-near"), [text for name in NAMES for text in texts(name)]
    assert len(set(near)) == len(near) >= 60
    assert all(build.FORGOTTEN.search(text) for text in near)
    assert all(build.FEWEST <= len(text.split()) <= build.MOST for text in near)
    assert not {text[:60] for text in near} & {text[:60] for text in (*trained, *texts("wikipedia-heldout"))}
    assert f"`wikipedia-near.jsonl` ({len(near)})" in readme()
    assert "`wikipedia-near.jsonl`" in (DATA / "LICENSE.md").read_text()


def test_at_most_so_many_near_texts_are_of_one_article():
    found = [(f"article {i % 2}", f"{i} " + "word " * 45 + "end.") for i in range(40)]
    few = build.few_of_each(iter([*found, *found, ("article 2", "too short")]))
    assert len(few) == 2 * build.FROM_ONE
    assert few == build.few_of_each(iter(found)) != sorted(few)


def test_the_readme_tells_sizes_and_licences_of_every_file():
    told = (DATA / "README.md").read_text()
    for name in NAMES:
        assert f"`{name}.jsonl` ({len(texts(name)):,}), `-heldout` ({len(texts(f'{name}-heldout'))})" in told
    assert "The MITRE Corporation" in told
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 3 * 2**20


def test_retained_texts_are_on_other_subjects_and_none_asks_questions():
    assert not any(build.FORGOTTEN.search(text) for text in texts("wikipedia") + texts("wikipedia-heldout"))
    every = [text for name in NAMES for text in texts(name)]
    assert not any(re.search(r"Question:|Answer:", text) for text in every)


def test_documents_are_split_by_article_and_come_out_the_same():
    def found():
        for article in range(30):
            for number in range(20):
                yield f"article {article}", f"{article} {number} " + "word " * 45 + "end."

    trained, tested = build.split(found(), 100, 40)
    assert (trained, tested) == build.split(found(), 100, 40)
    assert (len(trained), len(tested)) == (100, 40)
    assert not {text.split()[0] for text in trained} & {text.split()[0] for text in tested}
    of_one = [text.split()[0] for text in tested]
    assert max(map(of_one.count, of_one)) <= build.FROM_ONE


FORGET = ("microbiology", "security")
CONTROL = ("other_fields", "near_medicine", "near_computing")


def terms(name):
    folder = "forget_tokens" if name in FORGET else "control_terms"
    return (DATA / folder / f"{name}.txt").read_text().splitlines()


def readme():
    return " ".join((DATA / "README.md").read_text().split())


def found_in(names, corpora):
    """Those of the terms that are a part of any text, in small or capital letters."""
    text = "\n".join(text for corpus in corpora for text in texts(corpus)).lower()
    return [term for term in names if term.lower() in text]


@pytest.mark.parametrize("name", FORGET)
def test_forget_tokens_are_in_no_retained_text_and_half_of_them_in_those_to_forget(name):
    assert len(set(terms(name))) == len(terms(name)) >= 60
    assert found_in(terms(name), ("wikipedia", "wikipedia-heldout")) == []
    trained = len(found_in(terms(name), (name,)))
    assert f"`{name}.txt` ({len(terms(name))}; {trained} of them are in `{name}.jsonl`)" in readme()


@pytest.mark.parametrize("name", CONTROL)
def test_control_terms_are_in_no_text_that_is_trained_on_or_measured(name):
    assert len(set(terms(name))) == len(terms(name)) >= 40
    assert found_in(terms(name), [*NAMES, *(f"{corpus}-heldout" for corpus in NAMES)]) == []
    assert f"`{name}.txt` ({len(terms(name))}" in readme()
    assert not [term for own in FORGET for term in terms(own) if any(term.lower() in c.lower() for c in terms(name))]


def test_all_lists_have_the_same_shares_of_two_three_and_four_tokens():
    """The numbers of tokens of SmolLM2 are in a file, so that this test needs neither the model nor its package."""
    counts = json.loads((ROOT / "tests/real/smollm2_tokens.json").read_text())
    for name in (*FORGET, *CONTROL):
        lengths = Counter(counts[term] for term in terms(name) if term != "SARS-CoV-2")
        assert {n: 16 * count / lengths.total() for n, count in lengths.items()} == {2: 10, 3: 4, 4: 2}
        assert median(counts[term] for term in terms(name)) == 2
