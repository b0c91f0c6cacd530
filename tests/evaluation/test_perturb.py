"""Perturbed queries: one incorrect option becomes a forget-token, the same one for every model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn.errors import UserError
from unlearn.evaluation.perturb import REPLACED, perturb
from unlearn.evaluation.questions import query_words
from unlearn.evaluation.tokens import control_tokens, corpus_tokens, read_tokens

TOKENS = ["SARS-CoV-2", "exploit"]


@given(
    choices=st.lists(st.text(min_size=1), min_size=2, max_size=6, unique=True),
    data=st.data(),
    seed=st.integers(0, 5),
    question=st.integers(0, 1000),
)
def test_exactly_one_incorrect_option_changes(choices, data, seed, question):
    answer = data.draw(st.integers(0, len(choices) - 1))
    document = {"question": "?", "choices": choices, "answer": answer}
    asked = perturb(document, ["#forget#"], seed=seed, task="t", question=question)
    changed = [i for i, (a, b) in enumerate(zip(choices, asked["choices"], strict=True)) if a != b]
    assert len(changed) == 1 or "#forget#" in choices
    assert answer not in changed
    assert asked["choices"].count("#forget#") >= 1
    assert (asked["question"], asked["answer"]) == ("?", answer)
    assert document["choices"] == choices  # the original is left alone
    assert asked[REPLACED] == ["#forget#"]
    assert asked == perturb(document, ["#forget#"], seed=seed, task="t", question=question)


def test_every_wrong_option_and_every_token_is_drawn_about_equally_often():
    document = {"choices": ["a", "b", "c", "d"], "answer": 1}
    drawn = [perturb(document, TOKENS, seed=0, task="t", question=i)["choices"] for i in range(1200)]
    for place in (0, 2, 3):
        for token in TOKENS:
            assert sum(choices[place] == token for choices in drawn) == pytest.approx(200, abs=65)  # 5 sigma


def test_the_right_answer_is_never_used_as_a_token():
    document = {"choices": ["exploit", "b"], "answer": 0}
    for i in range(20):
        assert perturb(document, TOKENS, seed=0, task="t", question=i)["choices"] == ["exploit", "SARS-CoV-2"]
    with pytest.raises(UserError, match="every forget-token is its right answer"):
        perturb(document, ["exploit"], seed=0, task="t", question=0)


def test_other_columns_are_refused():
    with pytest.raises(UserError, match=r"task piqa, question 3: .*`choices`.*it has goal, sol1.*eval\.queries"):
        perturb({"goal": "x", "sol1": "y"}, TOKENS, seed=0, task="piqa", question=3)


def test_tokens_come_from_a_list_or_a_file(tmp_path):
    file = tmp_path / "tokens.txt"
    file.write_text("SARS-CoV-2\n\n exploit \n")
    assert read_tokens(str(file)) == TOKENS == read_tokens(TOKENS)
    file.write_bytes(b"\xef\xbb\xbfSARS-CoV-2\r\nexploit\r\n")  # as Windows programs write it
    assert read_tokens(str(file)) == TOKENS
    file.write_bytes("virus\nvirus à ADN\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"eval\.forget_tokens: .*tokens\.txt:2: not UTF-8 text"):
        read_tokens(str(file))
    file.write_text("\n")
    with pytest.raises(UserError, match="the file is empty"):
        read_tokens(str(file))
    with pytest.raises(UserError, match="there is no such file"):
        read_tokens(str(tmp_path / "none.txt"))


@pytest.mark.parametrize("count", [1, 2, 3, 9])
@pytest.mark.parametrize("position", ["random", "first", "last"])
def test_number_and_position_of_replacements_can_be_chosen(count, position):
    document = {"choices": ["a", "b", "c", "d"], "answer": 1}
    asked = perturb(document, ["#"], seed=0, task="t", question=3, count=count, position=position)["choices"]
    replaced = [i for i, choice in enumerate(asked) if choice == "#"]
    assert len(replaced) == min(count, 3)
    assert asked[1] == "b"
    if position != "random":
        assert replaced == {"first": [0, 2, 3][:count], "last": [0, 2, 3][-count:]}[position]


def test_all_files_of_a_folder_are_one_list(tmp_path):
    with pytest.raises(UserError, match=r"has no file that ends in \.txt"):
        read_tokens(str(tmp_path))
    (tmp_path / "b.txt").write_text("exploit\n")
    (tmp_path / "a.txt").write_text("SARS-CoV-2\n")
    (tmp_path / "README.md").write_text("no token\n")
    assert read_tokens(str(tmp_path)) == TOKENS


def test_control_tokens_are_harmless_and_alike():
    forget = ["a virus called SARS-CoV-2 spreads", "plasmid plasmid plasmid plasmid vector"]
    retain = ["river river river river valley", "harbour mountains plasmid", "wanderings abcdefghij of a poet"]
    controls = control_tokens(["SARS-CoV-2", "plasmid"], forget, retain)
    assert not {"plasmid", "virus", "vector", "SARS-CoV-2"} & set(controls)
    assert set(controls[:2]) == {"abcdefghij", "wanderings"}  # as long and as rare as SARS-CoV-2
    assert "river" in controls  # as frequent as plasmid
    assert controls == control_tokens(["SARS-CoV-2", "plasmid"], forget, retain)
    with pytest.raises(UserError, match="control queries need words in the retain corpora"):
        control_tokens(["plasmid"], forget, ["plasmid"])


def test_a_control_term_of_several_words_is_in_the_texts_as_it_stands():
    retain = ["river valley, high harbour walls of plasmid stone bridges"]
    controls = control_tokens(["plasmid vector"], ["plasmid vector"], retain)
    # Not "valley high" and not "walls stone": a comma, "of" and a word to forget are between them.
    assert set(controls) == {"river valley", "high harbour", "harbour walls", "stone bridges"}
    loose = control_tokens(["plasmid vector"], ["plasmid vector"], ["river, valley"])
    assert all(set(pair.split()) <= {"river", "valley"} for pair in loose)


def test_control_tokens_are_matched_by_number_of_tokens_and_by_frequency():
    """A corpus with every length and frequency: each control is of the length and of the class of its forget-token."""
    lengths = {f"{letter}{'x' * n}river": n for letter in "abcdefgh" for n in (1, 2, 3)}
    retain = [" ".join([word] * (8 if word < "e" else 1)) for word in lengths]
    forget = ["plasmid", "virus " * 8]
    controls = control_tokens(["plasmid", "virus"], forget, retain, 0, lambda term: lengths.get(term, 2))
    of_plasmid, of_virus = controls[:4], controls[5:9]  # four of the corpus are like each, the fifth is near
    assert all(lengths[word] == 2 and word >= "e" for word in of_plasmid)
    assert all(lengths[word] == 2 and word < "e" for word in of_virus)


def test_of_control_tokens_that_are_alike_the_seed_draws_and_not_the_alphabet():
    retain = [f"{letter}river" for letter in "abcdefghijklmnopqrstuvwxyz"]
    draws = [control_tokens(["plasmi"], ["plasmi"], retain, seed) for seed in range(20)]
    assert all(len(draw) == 5 for draw in draws)
    assert len({word for draw in draws for word in draw}) > 20  # of 26
    assert draws[0] == control_tokens(["plasmi"], ["plasmi"], retain, 0)


def test_control_tokens_of_the_users_own(conf, tmp_path):
    (tmp_path / "terms.txt").write_text("photosynthesis\nplate tectonics\n")
    asked = ("eval=toy", "eval.queries=[control]", "eval.forget_tokens=[]")
    for words in (f"{tmp_path / 'terms.txt'}", "[photosynthesis,plate tectonics]"):
        config = conf(*asked, f"eval.control_tokens={words}")
        assert query_words(config, None, {}) == {"control": ["photosynthesis", "plate tectonics"]}
    with pytest.raises(UserError, match=r"eval\.control_tokens=/nope: there is no such file\. Give a list, a file"):
        query_words(conf(*asked, "eval.control_tokens=/nope"), None, {})
    with pytest.raises(UserError, match=r"eval\.control_tokens=\[\] is not allowed: it must be a list of words"):
        conf(*asked, "eval.control_tokens=[]")


def test_a_corpus_stands_for_the_words_that_only_it_has():
    assert corpus_tokens(["plasmid river plasmid", "vector"], ["River banks"]) == ["plasmid", "vector"]


def test_an_unknown_position_is_an_error():
    document = {"question": "?", "choices": list("abcd"), "answer": 1}
    with pytest.raises(ValueError, match="position='middle' is not allowed: it must be random, first or last"):
        perturb(document, ["#"], seed=0, task="t", question=3, position="middle")
