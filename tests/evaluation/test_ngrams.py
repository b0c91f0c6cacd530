"""n-grams by similarity to their document, in the base model and by embeddings."""

import shutil

import pytest
import torch
from torch.nn.functional import cosine_similarity

from tests.conftest import ROOT, write_jsonl
from unlearn.data.corpora import documents
from unlearn.errors import UserError
from unlearn.evaluation.ngrams import Best, _words, embedded, in_context, rank_ngrams
from unlearn.evaluation.questions import query_words
from unlearn.models.cutting import CutModel
from unlearn.models.loading import Source, load_tokenizer, load_up_to
from unlearn.records.names import NGRAM_SIZES

SOURCE = Source(str(ROOT / "unlearn/toy/model"))


@pytest.fixture(scope="module")
def cut():
    return CutModel(load_up_to(SOURCE, 5), 5)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(SOURCE)


def test_similarities_are_those_of_plain_means(cut, tokenizer):
    text = "The soil of the river, the blossom and (the ruler) of the harbour are old."
    ids = tokenizer(text, add_special_tokens=False)
    h_TD = cut.span(cut.prefix(torch.tensor([ids["input_ids"]])), cut.frozen)[0]
    found = {n: (names, values) for n, names, values in in_context(text, cut, tokenizer, window=512)}
    spans = _words(text, tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"])
    assert [word for _, _, word in spans] == [w.strip(".,()") for w in text.split()]
    names, values = found[2]
    assert names[:3] == ["The soil", "soil of", "of the"]
    for i, value in enumerate(values):
        state_D = h_TD[spans[i][0] : spans[i + 1][1]].mean(dim=0)
        assert value.item() == pytest.approx(cosine_similarity(state_D, h_TD.mean(dim=0), dim=0).item(), abs=1e-5)
    assert len(found[4][0]) == len(text.split()) - 3
    assert 16 not in found  # the text has fewer words


def test_windows_cut_long_documents(cut, tokenizer):
    text = "river soil harbour ruler " * 20
    measured = list(in_context(text, cut, tokenizer, window=16))
    assert {n for n, _, _ in measured} <= set(NGRAM_SIZES)
    assert sum(len(names) for n, names, _ in measured if n == 2) < 79  # n-grams do not cross windows
    assert list(in_context("", cut, tokenizer, window=16)) == []


def test_lists_hold_the_extremes_and_the_middle():
    values = {"doc a": {"x": 0.9, "y": 0.1, "z": 0.5}, "doc b": {"x": 0.2, "v": 0.55, "w": -0.3}}

    def measure(document):
        entries = values[document]
        for n in NGRAM_SIZES:
            yield n, list(entries), torch.tensor(list(entries.values()))

    lists = rank_ngrams(lambda: iter(values), measure, top=2)["2"]
    assert [e["ngram"] for e in lists["most"]] == ["x", "v"]
    assert [e["ngram"] for e in lists["least"]] == ["w", "y"]
    assert lists["mean_similarity"] == pytest.approx(1.95 / 6)
    assert [e["ngram"] for e in lists["mean"]] == ["x", "z"]  # 0.2 and 0.5 are nearest to 0.325
    assert lists["mean"][0]["similarity"] == pytest.approx(0.2)
    assert lists["count"] == 6


def test_the_heap_keeps_the_best_of_many():
    generator = torch.Generator().manual_seed(0)
    best, everything = Best(10), []
    for window in range(50):
        scores_W = torch.rand(40, generator=generator)
        names = [f"{window} {i}" for i in range(40)]
        everything += zip(scores_W.tolist(), names, strict=True)
        best.offer(names, scores_W, scores_W)
    assert [e["ngram"] for e in best.listed()] == [name for _, name in sorted(everything, reverse=True)[:10]]


def test_words_of_queries_come_from_the_forget_corpora_and_are_kept(conf, tmp_path, monkeypatch):
    queries = "eval.queries=[default,similarity-most,similarity-least,similarity-mean,ngram-4]"
    config = conf("eval=toy", queries, "eval.ngrams.documents=6", f"output_root={tmp_path}")
    source = Source.of(config.model)
    words = query_words(config, source, load_tokenizer(source))
    texts = [text for topic in ("bio", "cyber") for text, _ in documents(config.data.topics[topic].forget, "")]
    plain = " ".join(" ".join(w.strip(".,;:!?()[]{}\"'") for w in text.split()) for text in texts)
    for query, n in (("similarity-most", 2), ("similarity-least", 2), ("similarity-mean", 2), ("ngram-4", 4)):
        assert len(words[query]) == 10
        assert all(len(word.split()) == n and word in plain for word in words[query])
    assert words["default"] == []
    monkeypatch.setattr("unlearn.evaluation.questions.rank_ngrams", None)  # not computed again
    assert query_words(config, source, load_tokenizer(source)) == words


def test_what_determines_the_lists_is_what_they_are_kept_by(conf, tmp_path):
    """Another column of the same file, another dtype, other weights of an encoder in the same folder."""
    rows = [{"text": "the river is old", "body": "an open harbour"}] * 2
    corpus, encoder = write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "encoder"
    shutil.copytree(SOURCE.path, encoder)

    def listed(*more):
        topic = f"+data.topics.chem={{forget: {corpus}, retain: {corpus}, max_length: 9}}"
        asked = ("eval=toy", "eval.queries=[default,similarity-most]", f"output_root={tmp_path}")
        config = conf(topic, "data.use=[chem]", *asked, *more)
        source = Source.of(config.model)
        return query_words(config, source, load_tokenizer(source))["similarity-most"]

    def kept():
        return len(list((tmp_path / "cache/ngrams").iterdir()))

    assert listed() == listed("data.errors=replace")  # the texts are the same
    assert "the river" in listed()
    assert "open harbour" in listed("data.text_column=body")
    assert kept() == 2
    listed("model.dtype=bfloat16")
    listed(f"eval.ngrams.encoder={encoder}")
    assert kept() == 4
    with (encoder / "config.json").open("a") as file:
        file.write(" ")
    listed(f"eval.ngrams.encoder={encoder}")
    assert kept() == 5


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("perturbed", r"eval\.forget_tokens=corpus:chem: perturbed queries need at least one word, and the topic"),
        ("control", r"eval\.forget_tokens=corpus:chem: control queries need at least one word"),
        ("ngram-16", r"eval\.queries: ngram-16 queries need n-grams of 16 words, and no document"),
    ],
)
def test_a_query_for_which_the_corpora_have_no_word_is_refused(conf, tmp_path, query, told):
    corpus = write_jsonl(tmp_path / "a.jsonl", [{"text": "the river is old"}])
    topic = f"+data.topics.chem={{forget: {corpus}, retain: {corpus}, max_length: 9}}"
    asked = ("eval=toy", f"eval.queries=[default,{query}]", "eval.forget_tokens=corpus:chem", f"output_root={tmp_path}")
    config = conf(topic, "data.use=[chem]", *asked)
    source = Source.of(config.model)
    with pytest.raises(UserError, match=told):
        query_words(config, source, load_tokenizer(source))


def test_a_sentence_model_may_take_the_place_of_the_states(tokenizer):
    model = load_up_to(SOURCE, 5)
    measured = list(embedded("river soil harbour ruler " * 3, model, tokenizer, window=6))
    assert {n for n, _, _ in measured} == {2, 4, 8}
    for _, names, values in measured:
        assert len(names) == len(values) == len(set(names))
        assert values.abs().max() <= 1 + 1e-5
