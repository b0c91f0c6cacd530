"""The corpora of data=real: their sizes, licences, and that held-out texts are others than those for training."""

import re

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


def test_forget_tokens_are_in_no_retained_text():
    tokens = (DATA / "forget_tokens.txt").read_text().splitlines()
    retained = " ".join(texts("wikipedia") + texts("wikipedia-heldout")).lower()
    assert [token for token in tokens if token.lower() in retained] == []
    assert len(tokens) == 12
