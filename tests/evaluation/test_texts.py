"""Held-out texts: where a document is cut, what is measured of it, and its way through a run to W&B and `compare`."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.conftest import ROOT, read_metrics
from unlearn.analysis.compare import compare_runs
from unlearn.config.schema import TextConfig
from unlearn.errors import UserError
from unlearn.evaluation.harness import with_agreement
from unlearn.evaluation.suite import Suite
from unlearn.evaluation.texts import load_passages
from unlearn.evaluation.tokens import read_tokens
from unlearn.experiment import run
from unlearn.models.delta import load_delta
from unlearn.models.loading import Source, load_tokenizer, load_whole
from unlearn.records.answers import Answers
from unlearn.records.samples import Sample, read_samples
from unlearn.records.scores import read_scores
from unlearn.statistics.paired import PairedMeans, paired_means
from unlearn.tracking.wandb_tables import question_rows, role_figures, text_rows

WORDS = [f"w{n}" for n in range(20)]
TOY = str(ROOT / "unlearn/toy/model")
HELD_OUT = ROOT / "unlearn/real/data/wikipedia-heldout.jsonl"


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "wiki.txt"
    file.write_text("\n".join([" ".join(WORDS), "too short", " ".join(reversed(WORDS))]))
    return str(file)


def passages(corpus, words=("virus",), **settings):
    config = TextConfig({"retain": {"wiki": corpus}}, **settings)
    found = load_passages(config, {"default": [], "perturbed": list(words)}, seed=3)
    return [found[query]["retain_text_wiki"] for query in ("default", "perturbed")]


def test_a_word_is_inserted_behind_a_quarter_and_the_first_word_behind_it_is_left_out(corpus):
    default, perturbed = passages(corpus)
    assert [p.id for p in default] == [0, 2]
    assert default[0].beginning == "w0 w1 w2 w3 w4 w5"
    assert perturbed[0].beginning == "w0 w1 w2 w3 w4 virus. w5"
    assert default[0].rest == perturbed[0].rest == " " + " ".join(WORDS[6:])


def test_only_the_last_documents_are_read_where_the_others_are_trained_on(corpus):
    assert [p.id for p in passages(corpus, last=1)[0]] == [2]
    assert [p.id for p in passages(corpus, last=2)[0]] == [2]  # document 1 is too short


def test_several_words_at_the_start(corpus):
    default, perturbed = passages(corpus, words=("a", "b"), place="start", inserted=2)
    assert default[0].beginning == "w0"
    first, second, last = perturbed[0].beginning.split()
    assert {first, second} <= {"a.", "b."}
    assert last == "w0"


def test_what_was_inserted_is_told_and_changes_no_hash_of_a_text(corpus):
    default, perturbed = passages(corpus)
    assert [p.inserted for p in default] == [None, None]
    assert [p.inserted for p in perturbed] == ["virus", "virus"]
    assert {p.inserted for p in passages(corpus, words=("a", "b"), inserted=2)[1]} <= {"a. a", "a. b", "b. a", "b. b"}
    assert repr(perturbed[0]) == repr(replace(perturbed[0], inserted=None, plain=""))  # what is hashed


@pytest.mark.parametrize(("each", "inserted", "different"), [(3, 1, 4), (2, 1, 6), (20, 1, 1), (1, 1, 12), (4, 2, 6)])
def test_words_are_dealt_so_that_each_is_in_several_texts(each, inserted, different):
    texts = {"retain": {"wiki": [" ".join(WORDS)] * 12}}
    words = [f"x{n}" for n in range(30)]

    def dealt(seed, query="perturbed"):
        config = TextConfig(texts_per_word=each, inserted=inserted)
        found = load_passages(config, {query: words}, corpora=texts, seed=seed)[query]["retain_text_wiki"]
        return [word for p in found for word in p.inserted.split(". ")]

    counts = Counter(dealt(0))
    assert len(counts) == different
    assert min(counts.values()) >= min(each, 12)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert dealt(0) == dealt(0)
    for draws in (
        [dealt(seed) for seed in range(4)],
        [dealt(0, query) for query in ("perturbed", "control", "ngram-2")],
    ):
        assert len(set(map(tuple, draws))) > 1


def test_of_ngrams_as_many_are_dealt_as_there_are_texts():
    texts, words = {"retain": {"wiki": [" ".join(WORDS)] * 12}}, [f"x{n} y" for n in range(30)]
    config = TextConfig(texts_per_word=3)
    found = load_passages(config, dict.fromkeys(("ngram-2", "perturbed"), words), corpora=texts)
    different = {query: len({p.inserted for p in found[query]["retain_text_wiki"]}) for query in found}
    assert different == {"ngram-2": 12, "perturbed": 4}


def test_a_list_that_is_too_short_is_dealt_as_a_whole():
    texts = {"retain": {"wiki": [" ".join(WORDS)] * 12}}
    found = load_passages(TextConfig(texts_per_word=2), {"perturbed": ["a", "b"]}, corpora=texts)
    assert Counter(p.inserted for p in found["perturbed"]["retain_text_wiki"]) == {"a": 6, "b": 6}


def test_a_random_place_is_in_the_first_half_and_the_same_for_every_query(corpus):
    default, perturbed = passages(corpus, place="random")
    for before, after in zip(default, perturbed, strict=True):
        assert before.rest == after.rest
        assert len(before.beginning.split()) <= 10
    assert default[0].beginning.split()[-1] != default[1].beginning.split()[-1]


def test_only_so_many_words_and_documents_are_read(corpus):
    config = TextConfig({"retain": {"wiki": corpus}}, words=12, documents=1)
    [passage] = load_passages(config, {"default": []})["default"]["retain_text_wiki"]
    assert (passage.beginning + passage.rest).split() == WORDS[:12]
    config = TextConfig({"retain": {"wiki": corpus}}, skip=1)
    assert [passage.id for passage in load_passages(config, {"default": []})["default"]["retain_text_wiki"]] == [2]


def test_which_roles_are_asked(corpus):
    config = TextConfig({"retain": {"wiki": corpus}, "forget": {"bio": corpus}})
    found = load_passages(config, {"default": [], "perturbed": ["x"]}, asked_of={"perturbed": ["retain_text"]})
    assert found["default"].keys() == {"retain_text_wiki", "forget_text_bio"}
    assert found["perturbed"].keys() == {"retain_text_wiki"}


def test_what_is_wrong_with_a_corpus_is_said(tmp_path, corpus):
    short = tmp_path / "short.txt"
    short.write_text("one two three\n")
    for path, words in ((str(short), "8 words or more"), ("/nope.txt", "no such file")):
        with pytest.raises(UserError, match=f"eval.texts.corpora.retain.wiki.*{words}"):
            load_passages(TextConfig({"retain": {"wiki": path}}), {"default": []})


def test_means_are_compared_document_by_document():
    result = paired_means([1.0, 2.0, 3.0, 4.0], [1.5, 2.4, 3.6, 4.5])
    assert result.documents == 4
    assert math.isclose(result.difference, 0.5)
    half = 3.182446 * 0.0816497 / 2  # t(0.975, 3) s / sqrt(4)
    assert math.isclose(result.high - result.difference, half, rel_tol=1e-5)
    assert result.p < 0.01
    assert paired_means([1.0, 2.0], [1.0, 2.0]) == PairedMeans(2, 0.0, 0.0, 0.0, 1.0)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory, conf):
    root = tmp_path_factory.mktemp("texts")
    job = (
        "train.steps=3", "train.log_every=1", "method.c=400", "eval.limit=4", "eval.queries=[default,perturbed]",
        f"+eval.texts.corpora.retain.wiki={HELD_OUT}", "eval.texts.documents=5", "tracker=none", f"output_root={root}",
    )  # fmt: skip
    return [run(conf(*job, f"rna.nu={nu}")) for nu in (0, 0.5)]


def test_a_runs_samples_tell_what_was_inserted(two_runs):
    tokens = read_tokens(str(ROOT / "unlearn/toy/data/forget_tokens.txt"))
    texts = [sample for sample in read_samples(two_runs[0]) if sample.nats is not None]
    assert {sample.inserted for sample in texts if sample.query == "default"} == {None}
    assert {sample.inserted for sample in texts if sample.query == "perturbed"} <= set(tokens)


def test_the_measure_is_the_mean_negative_log_likelihood_of_the_rest(two_runs):
    metrics = read_metrics(two_runs[0])
    model, tokenizer = load_whole(Source(TOY)), load_tokenizer(Source(TOY))
    config = TextConfig({"retain": {"wiki": str(HELD_OUT)}}, documents=4)
    expected = []
    for passage in load_passages(config, {"default": []})["default"]["retain_text_wiki"]:
        first = tokenizer(passage.beginning, add_special_tokens=True)["input_ids"]
        ids_T = torch.tensor(tokenizer(passage.beginning + passage.rest)["input_ids"])
        with torch.no_grad():
            logprobs_TV = model(ids_T[None]).logits[0].log_softmax(-1)
        nats_T = -logprobs_TV[:-1].gather(1, ids_T[1:, None]).squeeze(1)
        expected.append(nats_T[len(first) - 1 :].mean().item())
    assert math.isclose(metrics["base/retain_text_wiki/default/nats"], sum(expected) / 4, rel_tol=1e-5)
    assert math.isclose(metrics["base/retain_text_wiki/default/perplexity"], math.exp(sum(expected) / 4), rel_tol=1e-4)


def test_a_run_has_differences_from_the_base_model_and_from_the_default_query(two_runs):
    metrics = read_metrics(two_runs[0])
    name = "unlearned/retain_text_wiki"
    cost = metrics[f"{name}/perturbed/nats"] - metrics[f"{name}/default/nats"]
    assert math.isclose(metrics[f"{name}/perturbed/default_difference"], cost, rel_tol=1e-6, abs_tol=1e-9)
    change = metrics[f"{name}/default/nats"] - metrics["base/retain_text_wiki/default/nats"]
    assert change != 0
    assert math.isclose(metrics[f"{name}/default/base_difference"], change, rel_tol=1e-6)


def first_choices(weights, text):
    """Of a plain forward pass: the most likely token in the place of each token behind a text's beginning."""
    model, tokenizer = load_whole(Source(TOY)), load_tokenizer(Source(TOY))
    model.load_state_dict(weights, strict=False)
    first = len(tokenizer(text.beginning)["input_ids"])
    with torch.no_grad():
        logits_TV = model(torch.tensor([tokenizer(text.beginning + text.rest)["input_ids"]])).logits[0]
    return logits_TV.argmax(-1)[first - 1 : -1].tolist()


def test_agreement_is_the_share_of_tokens_at_which_the_first_choice_is_the_base_models(two_runs):
    weights, _ = load_delta(two_runs[1] / "delta.safetensors")
    samples = [s for s in read_samples(two_runs[1]) if s.role == "retain_text"]
    texts = load_passages(TextConfig({"retain": {"wiki": str(HELD_OUT)}}, documents=4), {"default": []})
    expected = []
    for passage in texts["default"]["retain_text_wiki"]:
        before, after = first_choices({}, passage), first_choices(weights, passage)
        [base], [own] = (
            [s for s in samples if (s.model, s.query, s.id) == (model, "default", passage.id)]
            for model in ("base", "unlearned")
        )
        assert (base.choices, own.choices) == (before, after)
        assert base.agreement is None
        expected.append(sum(a == b for a, b in zip(before, after, strict=True)) / own.tokens)
        assert own.agreement == expected[-1]
    assert 0 < sum(expected) < 4
    scores = {(s.query, s.against): s for s in read_scores(two_runs[1]) if s.measure == "agreement"}
    assert scores.keys() == {("default", None), ("perturbed", None), ("perturbed", "default")}
    assert scores["default", None].value == pytest.approx(sum(expected) / 4)
    change = scores["perturbed", None].value - scores["default", None].value
    assert scores["perturbed", "default"].value == pytest.approx(change)
    assert scores["perturbed", "default"].n == 4


def test_a_text_without_a_likelihood_has_no_agreement(two_runs):
    place = ("retain_text", "retain_text_wiki", "default", 0, "x")
    base = Sample("base", *place, nats=3.0, tokens=2, choices=[4, 5])
    broken = replace(base, model="unlearned", nats=math.nan)
    suite = Suite({}, {}, {}, None, {"default": {"retain_text_wiki": []}}, {"retain_text": ["retain_text_wiki"]})
    assert with_agreement(Answers([], [base]), Answers([], [broken]), suite) == Answers([], [broken])
    well = with_agreement(Answers([], [base]), Answers([], [replace(broken, nats=1.0, choices=[4, 6])]), suite)
    assert [(s.measure, s.value) for s in well.scores] == [("agreement", 0.5)]


def test_runs_are_compared_and_questions_stay_apart(two_runs):
    comparison = compare_runs(*two_runs)
    assert not comparison.refused
    results = comparison.results
    assert isinstance(results["retain_text_wiki", "default"], PairedMeans)
    assert results["retain_text", "perturbed"].documents == 4  # eval.limit
    assert not isinstance(results["retain", "default"], PairedMeans)


def test_other_texts_are_not_compared(two_runs, conf, tmp_path):
    job = ("train.steps=3", "eval.limit=4", "eval.queries=[default]", "tracker=none", f"output_root={tmp_path}")
    other = run(conf(*job, f"+eval.texts.corpora.retain.wiki={HELD_OUT}", "eval.texts.words=30"))
    comparison = compare_runs(two_runs[0], other)
    assert ("retain_text_wiki", "default") not in comparison.results
    assert "the questions differ in their text" in comparison.refused["retain_text", "default"]


def test_wandb_gets_a_table_of_texts_and_no_questions_of_them(two_runs):
    metrics, scores = read_metrics(two_runs[0]), read_scores(two_runs[0])
    rows = text_rows(scores)
    assert [row[:4] for row in rows] == [
        ["retain_text", "retain_text_wiki", query, model]
        for query in ("default", "perturbed")
        for model in ("base", "unlearned")
    ]
    figures = role_figures(scores)
    assert figures["retain_text/default/nats"] == metrics["unlearned/retain_text_wiki/default/nats"]
    assert figures["retain_text/perturbed/agreement"] == metrics["unlearned/retain_text_wiki/perturbed/agreement"]
    assert [row[7] for row in rows] == [metrics.get(f"{row[3]}/{row[1]}/{row[2]}/agreement") for row in rows]
    assert figures["robustness/text_cost"] == metrics["unlearned/retain_text_wiki/perturbed/default_difference"]
    place = {"role": "retain_text", "task": "retain_text_wiki", "query": "default", "id": 0, "question": "x"}
    assert list(question_rows(Sample(model, **place, nats=3.0, tokens=2) for model in ("base", "unlearned"))) == []
