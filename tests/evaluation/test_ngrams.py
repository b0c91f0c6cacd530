"""n-grams by similarity to their document, in the base model and by embeddings."""

import shutil
from itertools import islice

import pytest
import torch
from torch.nn.functional import cosine_similarity

from tests.conftest import ROOT, write_jsonl
from unlearn.data.corpora import documents
from unlearn.errors import UserError
from unlearn.evaluation.ngrams import PUNCTUATION, Best, Embedder, InContext, _words, mean_state, rank_ngrams
from unlearn.evaluation.questions import ngram_lists, query_words
from unlearn.models.cutting import CutModel
from unlearn.models.loading import Source, load_tokenizer, load_up_to
from unlearn.records.names import NGRAM_SIZES

SOURCE = Source(str(ROOT / "unlearn/toy/model"))


def named(ngrams):
    return [entry.ngram for entry in ngrams]


def words_of(config):
    source = Source.of(config.model)
    tokenizer = load_tokenizer(source)
    return query_words(config, tokenizer, ngram_lists(config, source, tokenizer))


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
    found = {n: (names, values) for n, names, values in InContext(cut, tokenizer, 512).measure(text)}
    spans = _words(text, tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"])
    assert [word for _, _, word in spans] == [w.strip(".,()") for w in text.split()]
    names, values = found[2]
    assert names[:3] == ["The soil", "soil of", "of the"]
    for i, value in enumerate(values):
        state_D = h_TD[spans[i][0] : spans[i + 1][1]].mean(dim=0)
        assert value.item() == pytest.approx(cosine_similarity(state_D, h_TD.mean(dim=0), dim=0).item(), abs=1e-5)
    assert len(found[4][0]) == len(text.split()) - 3
    assert 16 not in found  # the text has fewer words


def test_centred_similarities_are_those_beyond_the_mean_state(cut, tokenizer):
    """The mean over all tokens of both texts but the first of each, whose n-grams do not count either."""
    texts = ["Soil of the river, the old blossom and the ruler.", "Harbour of the town."]
    reader = InContext(cut, tokenizer, 512, skipped=1)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    states = [cut.span(cut.prefix(torch.tensor([row])), cut.frozen)[0][1:] for row in ids]
    mean_D = torch.cat(states).mean(dim=0)
    assert torch.allclose(mean_state(texts, reader).float(), mean_D, atol=1e-5)
    names, values = next((names, values) for n, names, values in reader.measure(texts[0], mean_D) if n == 2)
    assert names == ["old blossom"]  # the others begin or end with a stop word, or with the first token
    spans = _words(
        texts[0], tokenizer(texts[0], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    )
    first, last = next(a for a, _, word in spans if word == "old"), next(b for _, b, word in spans if word == "blossom")
    state_D = states[0][first - 1 : last - 1].mean(dim=0) - mean_D
    expected = cosine_similarity(state_D, states[0].mean(dim=0) - mean_D, dim=0)
    assert values.item() == pytest.approx(expected.item(), abs=1e-4)


def test_windows_cut_long_documents(cut, tokenizer):
    text = "river soil harbour ruler " * 20
    measured = list(InContext(cut, tokenizer, 16).measure(text))
    assert {n for n, _, _ in measured} <= set(NGRAM_SIZES)
    assert sum(len(names) for n, names, _ in measured if n == 2) < 79  # n-grams do not cross windows
    assert list(InContext(cut, tokenizer, 16).measure("")) == []


def test_lists_hold_the_extremes_and_the_middle():
    values = {"doc a": {"x": 0.9, "y": 0.1, "z": 0.5}, "doc b": {"x": 0.2, "v": 0.55, "w": -0.3}}

    def measure(document):
        entries = values[document]
        for n in NGRAM_SIZES:
            yield n, list(entries), torch.tensor(list(entries.values()))

    lists = rank_ngrams(lambda: iter(values), measure, top=2)["2"]
    assert named(lists.most) == ["x", "v"]
    assert named(lists.least) == ["w", "y"]
    assert lists.mean_similarity == pytest.approx(1.95 / 6)
    assert named(lists.mean) == ["x", "z"]  # 0.2 and 0.5 are nearest to 0.325
    assert lists.mean[0].similarity == pytest.approx(0.2)
    assert lists.count == 6
    alone = rank_ngrams(lambda: iter(values), measure, top=9, one_of_a_document=True)["2"]
    assert (named(alone.most), named(alone.least)) == (["x", "v"], ["w", "y"])  # one of doc a, one of doc b
    assert named(alone.mean) == ["x", "z"]


def test_the_heap_keeps_the_best_of_many():
    generator = torch.Generator().manual_seed(0)
    best, everything = Best(10), []
    for window in range(50):
        scores_W = torch.rand(40, generator=generator)
        names = [f"{window} {i}" for i in range(40)]
        everything += zip(scores_W.tolist(), names, strict=True)
        best.offer(names, scores_W, scores_W)
    assert named(best.listed()) == [name for _, name in sorted(everything, reverse=True)[:10]]


def test_words_of_queries_come_from_the_forget_corpora_and_are_kept(conf, tmp_path, monkeypatch):
    queries = "eval.queries=[default,similarity-most,similarity-least,similarity-mean,ngram-4]"
    few = ("eval.ngrams.documents=6", "eval.ngrams.top=10", "eval.ngrams.form=paper")
    config = conf("eval=toy", queries, *few, f"output_root={tmp_path}")
    words = words_of(config)
    texts = [text for topic in ("bio", "cyber") for text, _ in documents(config.data.topics[topic].forget, "")]
    plain = " ".join(" ".join(w.strip(".,;:!?()[]{}\"'") for w in text.split()) for text in texts)
    for query, n in (("similarity-most", 2), ("similarity-least", 2), ("similarity-mean", 2), ("ngram-4", 4)):
        assert len(words[query]) == 10
        assert all(len(word.split()) == n and word in plain for word in words[query])
    assert words["default"] == []
    monkeypatch.setattr("unlearn.evaluation.questions.rank_ngrams", None)  # not computed again
    assert words_of(config) == words


def test_what_determines_the_lists_is_what_they_are_kept_by(conf, tmp_path):
    """Another column of the same file, another dtype, other weights of an encoder in the same folder."""
    rows = [{"text": "the river is old", "body": "an open harbour"}] * 2
    corpus, encoder = write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "encoder"
    shutil.copytree(SOURCE.path, encoder)

    def listed(*more):
        topic = f"+data.topics.chem={{forget: {corpus}, retain: {corpus}, max_length: 9}}"
        asked = ("eval=toy", "eval.queries=[default,similarity-most]", f"output_root={tmp_path}")
        return words_of(conf(topic, "data.use=[chem]", "eval.ngrams.form=paper", *asked, *more))["similarity-most"]

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
    with pytest.raises(UserError, match=told):
        words_of(config)


def test_a_sentence_model_may_take_the_place_of_the_states(tokenizer):
    model = load_up_to(SOURCE, 5)
    measured = list(Embedder(model, tokenizer, 6).measure("river soil harbour ruler " * 3))
    assert {n for n, _, _ in measured} == {2, 4, 8}
    for _, names, values in measured:
        assert len(names) == len(values) == len(set(names))
        assert values.abs().max() <= 1 + 1e-5


def test_embeddings_are_centred_too(tokenizer):
    reader = Embedder(load_up_to(SOURCE, 5), tokenizer, 6)
    texts = ["the old river of the town", "soil and blossom of a ruler"]
    centre_D = mean_state(texts, reader)
    raw = {names[0]: values for n, names, values in reader.measure(texts[0]) if n == 2}
    centred = {n: (names, values) for n, names, values in reader.measure(texts[0], centre_D)}
    assert {n: names for n, (names, _) in centred.items()} == {2: ["old river"], 4: ["river of the town"]}
    assert next(iter(raw)) == "the old"
    assert centred[2][1].item() < raw["the old"][1].item()  # raw states have a direction in common


def test_centred_lists_have_one_ngram_of_a_document_and_no_stop_word_at_an_end(conf, tmp_path):
    queries = "eval.queries=[default,similarity-most,ngram-16]"
    config = conf("eval=toy", queries, "eval.ngrams.documents=30", "eval.ngrams.top=12", f"output_root={tmp_path}")
    words = words_of(config)
    texts = [
        " ".join(word.strip(PUNCTUATION) for word in text.split())
        for topic in ("bio", "cyber")
        for text in islice((text for text, _ in documents(config.data.topics[topic].forget, "")), 30)
    ]
    assert len(words["similarity-most"]) == 12
    ends = {word.lower() for name in words["similarity-most"] for word in (name.split()[0], name.split()[-1])}
    assert not ends & {"the", "of", "and", "is", "a", "in"}
    assert len(words["ngram-16"]) > 5
    for text in texts:
        assert sum(ngram in text for ngram in words["ngram-16"]) <= 1
