"""What single words cost in retained texts: the table, the figure and the claims, on made-up runs and a small model."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from tests.analysis.made_up import made_up_run
from tests.conftest import ROOT
from unlearn.analysis.collect import collect
from unlearn.analysis.report import by_word
from unlearn.analysis.report.charts import SCREEN
from unlearn.analysis.report.material import gather
from unlearn.data.corpora import Topic
from unlearn.evaluation.term_properties import term_properties
from unlearn.evaluation.texts import Passage
from unlearn.experiment import run
from unlearn.models.cutting import CutModel
from unlearn.paper.claims import tokens
from unlearn.paper.claims.document import document, judged
from unlearn.paper.claims.evidence import Evidence
from unlearn.records.samples import Sample, read_samples, write_samples
from unlearn.records.scores import Score
from unlearn.records.terms import TermProperties, read_terms
from unlearn.statistics.intervals import two_way

TOY = ROOT / "unlearn/toy/model"
COSTS = {f"germ {n}": n / 4 for n in range(8)}  # of forget-tokens beyond the base model's, in nats a token
CONTROLS = {f"song {n}": 0.0 for n in range(8)}
BASE = 0.2  # what any word costs the base model
EACH = 3  # texts of a word
NOISE = np.array([-0.3, 0.1, 0.2])  # of a word's texts
SEEDS = (0.0, 0.04, -0.04)
PROPERTIES = {word: TermProperties(2 + n % 2, 7 - n, n / 10) for n, word in enumerate(COSTS)}


def word_run(folder, nu, seed, scale=1.0, asked=("default", "perturbed", "control")):
    """A run whose forget-tokens cost `scale` times COSTS, and more by SEEDS."""
    changes = {
        "identity.eval.tasks": {},
        "identity.eval.queries": list(asked),
        "identity.eval.texts": {"corpora": {"retain": {"wiki": ""}, "forget": {"bio": ""}}},
    }
    place = ("unlearned", "forget_text", "forget_text_bio", None, "default", "nats", 3.0)
    made_up_run(folder, nu=nu, seed=seed, changes=changes, scores=[Score(*place, "base", low=2.0, high=4.0, n=8)])
    rows = []
    for query, costs in (("default", dict.fromkeys(COSTS, 0.0)), ("perturbed", COSTS), ("control", CONTROLS)):
        for number in range(len(costs) * EACH):
            word = list(costs)[number % len(costs)]
            beyond = scale * costs[word] + NOISE[number // len(costs)] + SEEDS[seed] if query == "perturbed" else 0.0
            for model, own in (("base", 0.0), ("unlearned", beyond)):
                nats = 3 + number / 10 + (BASE if query != "default" else 0.0) + own
                place = (model, "retain_text", "retain_text_wiki", query, number, f"{query} {number}")
                inserted = None if query == "default" else word
                rows.append(Sample(*place, nats=10 * nats, tokens=10, inserted=inserted))
    write_samples(folder, [row for row in rows if row.query in asked])
    return folder


@pytest.fixture
def folders(tmp_path):
    return [word_run(tmp_path / f"{nu}-{s}", nu, s, scale=1 - 5 * nu) for nu in (0, 0.1) for s in range(3)]


def with_properties(folder):
    (folder / "terms.json").write_text(json.dumps({word: vars(own) for word, own in PROPERTIES.items()}))


def material(folders):
    return gather(collect([folders[0].parent]))


def test_a_word_costs_the_mean_over_seeds_and_its_texts_beyond_the_base_model(folders):
    m = material(folders)
    [subject] = Evidence(m).subjects
    found = by_word.by_word(m, subject.plain)
    assert {query: set(words) for query, words in found.items()} == {"perturbed": set(COSTS), "control": set(CONTROLS)}
    for word, cost in COSTS.items():
        values = found["perturbed"][word]
        assert values.shape == (3, EACH)
        assert np.allclose(values, cost + NOISE[None, :] + np.array(SEEDS)[:, None])
    assert all(np.allclose(values, 0) for values in found["control"].values())


def test_words_that_only_some_seeds_were_asked_are_measured_by_these(tmp_path):
    word_run(tmp_path / "0", 0, 0, asked=("default", "perturbed"))
    for seed in (1, 2):
        word_run(tmp_path / f"{seed}", 0, seed)
    m = gather(collect([tmp_path]))
    words = by_word.by_word(m, next(iter(m.shown)))
    assert {query: {len(v) for v in of.values()} for query, of in words.items()} == {"perturbed": {3}, "control": {2}}


def test_the_mean_cost_is_over_seeds_and_words_and_texts_of_a_word_are_not_counted_apart(folders):
    m = material(folders)
    [subject] = Evidence(m).subjects
    interval = by_word.of_words(by_word.by_word(m, subject.plain)["perturbed"])
    by_hand = two_way([np.array([[cost + more for cost in COSTS.values()] for more in SEEDS])])
    assert interval == pytest.approx(by_hand)
    assert interval.high - interval.low > 2 * 1.9 * stats.sem(list(COSTS.values()))  # not of 24 texts


def test_of_a_single_seed_the_interval_is_over_words(tmp_path):
    m = material([word_run(tmp_path / "one", 0, 0)])
    words = by_word.by_word(m, next(iter(m.shown)))["perturbed"]
    half = stats.t.ppf(0.975, 7) * stats.sem(list(COSTS.values()))
    assert by_word.of_words(words) == pytest.approx((0.875, 0.875 - half, 0.875 + half), rel=1e-6)


def test_the_table_has_a_row_for_each_word_the_dearest_first(folders):
    with_properties(folders[1])
    table = by_word.table(material(folders))
    rows = table.data.set_index("word")
    assert list(rows.index[:2]) == ["all 8", "germ 7"]
    assert len(rows) == 2 * (1 + 8)
    assert rows.loc["germ 7", ["texts", "number of tokens", "times in the forget texts"]].tolist() == [3, 3, 0]
    assert rows.loc["germ 7", "RMU"].startswith("+1.75 (")
    assert rows.loc["germ 7", "RMU, RNA"].startswith("+0.88 (")
    assert rows.loc["song 3", "RMU"] == "+0.00 (+0.00 .. +0.00)"


def test_without_words_in_its_records_a_run_has_no_table(tmp_path):
    m = material([made_up_run(tmp_path / "questions")])
    assert by_word.table(m) is None
    assert by_word.figure(m) is None


def test_the_figure_needs_properties_and_names_the_correlations(folders):
    assert by_word.figure(material(folders)) is None
    with_properties(folders[0])
    figure = by_word.figure(material(folders))
    assert set(figure.data["word"]) == set(COSTS)
    assert "similarity to the forget texts +1.00" in figure.caption
    assert "times in the forget texts -1.00" in figure.caption
    assert "symlog" in json.dumps(figure.chart(SCREEN).to_dict())


def test_which_property_tells_the_cost_is_judged(folders):
    evidence = Evidence(material(folders))
    assert "not measured: the properties were not measured" in document(evidence, "Claims")
    with_properties(folders[0])
    evidence = Evidence(material(folders))
    _, properties = tokens.tables(evidence, judged)
    similar, often, long = properties.data["RMU"]
    assert similar.startswith("**seen** +1.00")
    assert often.startswith("**contrary** -1.00")
    assert long.startswith("**not seen**")
    assert "8 forget-tokens" in similar
    assert "germ 7" in document(evidence, "Claims")


def test_a_words_state_is_the_mean_of_its_own_tokens(monkeypatch):
    """By hand, with states that are one-hot in the token id: the words are compared with what the texts consist of."""
    cut = CutModel.load(TOY, layer=2, whole=False)
    size = len(cut.tokenizer)
    monkeypatch.setattr(CutModel, "dim", size)
    monkeypatch.setattr(
        "unlearn.evaluation.term_properties._states",
        lambda _cut, ids: torch.nn.functional.one_hot(torch.tensor(list(ids)), size).float(),
    )
    topic = Topic.from_texts("a", ["river river river"], ["harbour harbour harbour"], cut.tokenizer)
    passages = [Passage(i, f"name has {word}. of", "", "", word) for i, word in enumerate(("river", "harbour"))]
    found = term_properties(cut, cut.tokenizer, passages, [topic])
    # Of the means f and r of the two corpora, which are unit vectors, the centre is (f + r) / 2.
    assert found["river"].similarity == pytest.approx(1)
    assert found["harbour"].similarity == pytest.approx(-1)
    assert [(own.tokens, own.count) for own in found.values()] == [(1, 3), (1, 0)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, conf):
    """A run of two steps with words in held-out texts."""
    root = tmp_path_factory.mktemp("trained")
    texts = f"+eval.texts.corpora.retain.wiki={TOY.parent / 'data/retain.jsonl'}"
    asked = ("eval=none", "eval.queries=[default,perturbed]", "eval.forget_tokens=[river,harbour]", texts)
    few = ("eval.texts.documents=4", "eval.texts.texts_per_word=2", "train.steps=2", "rna=none", "tracker=none")
    return run(conf(*asked, *few, f"output_root={root}"))


def test_properties_are_measured_once_and_kept_in_the_runs_folder(trained, monkeypatch):
    m = gather(collect([trained]))
    subject = SimpleNamespace(evidence=SimpleNamespace(material=m), plain=m.about["setting"][0])
    tokens.measure_terms([subject])
    terms = read_terms(trained)
    assert set(terms) == {"river", "harbour"}
    assert all(abs(term.similarity) <= 1 and term.tokens == 1 for term in terms.values())
    assert by_word.properties(m, subject.plain) == terms
    monkeypatch.setattr(tokens, "_measure", None)  # it would fail
    tokens.measure_terms([subject])
    assert {s.inserted for s in read_samples(trained) if s.query == "perturbed"} == {"river", "harbour"}


def test_properties_of_other_texts_are_refused(trained, capsys):
    m = gather(collect([trained]))
    [changed] = m.runs
    changed.record["inputs"]["data"] = {"bio": {"forget": "other"}}
    (trained / "terms.json").unlink(missing_ok=True)
    tokens.measure_terms([SimpleNamespace(evidence=SimpleNamespace(material=m), plain=m.about["setting"][0])])
    assert "its model, corpora or held-out texts are not what they were" in " ".join(capsys.readouterr().err.split())
    assert read_terms(trained) == {}
