"""Held-out texts in the report and among the claims, on made-up runs whose measures are known."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.analysis.made_up import add_scores, difference, made_up_run
from unlearn.analysis.collect import collect
from unlearn.analysis.report.answers import mean_of
from unlearn.analysis.report.charts import SCREEN
from unlearn.analysis.report.figures import figure_4
from unlearn.analysis.report.material import gather
from unlearn.analysis.report.trade_off import figure as trade_off
from unlearn.analysis.report.training import course
from unlearn.analysis.settings import Setting
from unlearn.paper.claims import texts as claims
from unlearn.paper.claims.contrasts import ONE_SEED, OTHER_ITEMS, contrast
from unlearn.paper.claims.document import document
from unlearn.paper.claims.equal_forgetting import at_equal_forgetting, matches
from unlearn.paper.claims.evidence import Evidence
from unlearn.paper.claims.text_measures import run_rows
from unlearn.records.names import text_role, text_task
from unlearn.records.ngrams import Ngram, NgramLists, as_json
from unlearn.records.samples import Sample, read_samples, write_samples
from unlearn.statistics.intervals import over_items

CORPORA = {"retain": {"wiki": ""}, "forget": {"bio": "", "cyber": ""}}
TEXTS = {"corpora": CORPORA, "documents": None, "words": 80, "place": "quarter", "inserted": 1}


EACH = 4  # texts of a corpus
NGRAMS = 2  # that are inserted into them, in turn
UNEVEN = np.array([-1.0, 1, -1, 1])  # of four texts, with a mean of 0


def text_run(
    root, c, nu, seed, *, forgotten, cost, retained=0.01, control=0.1, base=0.15, more=None, changes=None, uneven=0.0
):
    """A run that was asked held-out texts alone. `more`: what other words cost; `uneven`: how `cost` varies."""
    changes = {
        "identity.eval.tasks": {},
        "identity.eval.queries": ["default", "perturbed", "control"],
        "identity.eval.texts": TEXTS,
        **(changes or {}),
    }
    scores = [
        replace(text("wiki", "perturbed", "default", base), model="base"),
        text("wiki", "perturbed", "default", cost),
        text("wiki", "control", "default", control),
        text("wiki", "default", "base", retained),
        text("bio", "default", "base", forgotten + 0.5),
        text("cyber", "default", "base", forgotten - 0.5),
    ]
    costs = {"default": 0.0, "perturbed": cost + uneven * UNEVEN, "control": control, **(more or {})}
    of_base = {"default": 0.0, "perturbed": base, **dict.fromkeys(more or {}, 0.05)}
    samples = [
        *(row for query, value in costs.items() for row in texts("unlearned", "wiki", query, 3 + retained + value)),
        *(row for query, value in of_base.items() for row in texts("base", "wiki", query, 3 + value)),
        *(row for corpus in ("bio", "cyber") for row in texts("base", corpus, "default", 3)),
        *texts("unlearned", "bio", "default", 3 + forgotten + 0.5),
        *texts("unlearned", "cyber", "default", 3 + forgotten - 0.5),
    ]
    folder = root / f"{c}-{nu}-{seed}"
    made_up_run(folder, argument={"c": c}, nu=nu, seed=seed, changes=changes, scores=scores)
    write_samples(folder, samples)
    return folder


def texts(model, corpus, query, values):
    """A corpus's samples: a value for each text, or one for all."""
    role = "retain" if corpus == "wiki" else "forget"
    place = (model, text_role(role), text_task(role, corpus), query)
    words = [None if query == "default" else f"{query} {i % NGRAMS}" for i in range(EACH)]
    return [
        Sample(*place, i, f"{query} {i}", nats=10 * v, tokens=10, inserted=words[i])
        for i, v in enumerate(np.full(EACH, values))
    ]


def text(corpus, query, against, value):
    """A difference of nats a token of the unlearned model."""
    role = "retain" if corpus == "wiki" else "forget"
    return difference(text_role(role), corpus, query, "nats", value, against)


def add_maxlogits(folder, **means):
    """Of each model: the mean of MaxLogits; their standard deviation is 4 of the base model, and 5 of the other."""
    spread = {"base": 4.0, "unlearned": 5.0}

    def measured(sample):
        if (sample.role, sample.query) != (text_role("retain"), "perturbed"):
            return sample
        values = [means[sample.model] + sign * spread[sample.model] for sign in (-1, 1)]
        return replace(sample, maxlogits=values, maxlogit_tokens=[0, 0])

    write_samples(folder, [measured(sample) for sample in read_samples(folder)])


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Without RNA the cost is a quarter of what was forgotten; with it, 0.3 less; more in odd seeds by 0.02."""
    root = tmp_path_factory.mktemp("texts")
    for seed in range(3):
        more = 0.02 * (seed % 2)
        for c, forgotten in ((1, 2.0), (2, 3.0), (3, 4.0)):
            text_run(root, c, 0, seed, forgotten=forgotten, cost=forgotten / 4 + more)
        for nu, forgotten in ((0.1, 3.5), (0.2, 2.5), (0.4, 0.5)):  # the last one: less than any without RNA
            text_run(root, 3, nu, seed, forgotten=forgotten, cost=forgotten / 4 - 0.3 + 2 * more)
    return gather(collect([root]))


def test_the_measures_of_a_run_are_means_over_its_texts(material):
    rows = run_rows(material)
    assert len(rows) == 18
    first = rows[(rows["coefficient"] == "c=2") & (rows["seed"] == 0)].iloc[0]
    assert [mean_of(first[name]) for name in ("forgotten", "cost", "control")] == pytest.approx([3.0, 0.75, 0.1])
    data = trade_off(material).data
    row = data[(data["coefficient"] == "c=2")].iloc[0]
    assert row["seeds"] == 3
    assert math.isclose(row["token_cost"], 0.75 + 0.02 / 3, abs_tol=1e-4)
    assert row["token_cost_low"] < row["token_cost"] < row["token_cost_high"]


def test_of_two_runs_of_a_seed_the_one_with_most_measures_is_taken(tmp_path):
    for name in ("a", "b", "c"):
        text_run(tmp_path / name, 2, 0, 0, forgotten=3.0, cost=0.9)
    add_maxlogits(tmp_path / "b/2-0-0", base=9.0, unlearned=8.0)
    assert [mean_of(of) for of in run_rows(gather(collect([tmp_path])))["maxlogit"]] == [-1]


def test_rna_is_compared_at_equal_forgetting(material):
    found = at_equal_forgetting(run_rows(material), "cost")
    assert found.keys() == {0, 1, 2}
    assert mean_of(found[0]) == pytest.approx(-0.3)
    assert mean_of(found[1]) == pytest.approx(-0.28)


def test_no_comparison_across_a_wide_gap_or_beyond_the_ends():
    def found(*plain, rna):
        rows = pd.DataFrame({"nu": [0, 0, 1], "level": [*plain, rna]})
        return list(matches(rows.assign(seed=0, setting=Setting(frozenset()))))

    [match] = found(1.0, 2.0, rna=1.25)
    assert match.weights == (1, -0.75, -0.25)
    assert found(1.0, 4.0, rna=1.5) == found(1.0, 2.0, rna=2.5) == found(1.0, 2.0, rna=0.5) == []


def test_texts_that_all_seeds_share_widen_the_interval_and_one_seed_has_none(tmp_path):
    """Over seeds alone, RNA would be seen: all three say -0.3, of the same four texts, which say -0.9 to 0.3."""
    for seed in range(3):
        for c, forgotten in ((1, 2.0), (3, 4.0)):
            text_run(tmp_path, c, 0, seed, forgotten=forgotten, cost=1.0)
        text_run(tmp_path, 3, 0.1, seed, forgotten=3.0, cost=0.7 + seed / 1000, uneven=0.6)
    claim = next(claim for claim in claims.CLAIMS if "less at equal forgetting" in claim.says)
    [(_, rows)] = claims.by_method(Evidence(gather(collect([tmp_path])))).items()
    found = claim.effect(rows)
    assert (found.difference, claim.verdict(found)) == (pytest.approx(-0.299), "not seen")
    assert found.high - found.difference > 0.6
    alone = claim.effect(rows[rows["seed"] == 0])
    assert (claim.verdict(alone), alone.why_not) == ("not measured", ONE_SEED)


def test_texts_with_the_same_forget_token_are_one_item(tmp_path):
    """Of two tokens one does all the harm: seen over texts, of which there are 4, and not over tokens."""
    claim = next(claim for claim in claims.CLAIMS if "makes RM models stumble" in claim.says)
    word = {-1: "harmless", 1: "virus"}
    for seed in range(3):
        for nu in (0, 0.1):
            folder = text_run(tmp_path, 2, nu, seed, forgotten=3.0, cost=2.0 + seed / 1000, uneven=1.0)
            if nu == 0:
                samples = read_samples(folder)
                of_words = [replace(s, inserted=word[UNEVEN[s.id]]) if s.query == "perturbed" else s for s in samples]
                write_samples(folder, of_words)
    [(_, rows)] = claims.by_method(Evidence(gather(collect([tmp_path])))).items()
    found = claim.effect(rows)
    assert (found.difference, found.over) == (pytest.approx(1.851), "3 seeds, 2 inserted words")
    assert claim.verdict(found) == "not seen"
    assert claim.verdict(claim.effect(rows.drop(columns="word: retain_text"))) == "seen"


def test_texts_to_forget_are_among_those_that_equal_forgetting_is_over():
    """The run with RNA forgets its two texts unevenly, where a nat more costs 0.5 without RNA."""

    def row(nu, level, cost, uneven=0.0):
        forgotten = {"bio": {0: level - uneven, 1: level + uneven}}
        return {"nu": nu, "level": level, "forgotten": forgotten, "cost": {"wiki": {0: cost, 1: cost}}}

    rows = pd.DataFrame([row(0, 1.0, 0.2), row(0, 2.0, 0.7), row(1, 1.5, 0.1, 0.4)])
    [found] = at_equal_forgetting(rows.assign(seed=0, setting=Setting(frozenset())), "cost").values()
    assert mean_of(found) == pytest.approx(-0.35)
    assert found["wiki"] == pytest.approx({0: -0.7, 1: -0.7})  # two parts: their mean is half of it
    assert found["forgotten: bio"] == pytest.approx({0: 0.4, 1: -0.4})


def test_seeds_that_were_asked_other_texts_have_no_interval():
    by_seed = [{"wiki": {(seed, i): 1.0 for i in range(4)}} for seed in range(2)]
    assert contrast(by_seed, "texts").why_not == OTHER_ITEMS


@pytest.mark.parametrize(
    "other", [{"identity.model.layer": 9}, {"inputs.data": {"bio": "e"}}, {"identity.train": {"steps": 20, "lr": 1e-4}}]
)
def test_runs_of_another_layer_or_other_corpora_are_none_to_interpolate_between(other, tmp_path):
    """They cost nothing at the same forgetting; c and alpha may differ, rate and steps may not (`rivals`)."""
    usual, weaker = ({"identity.loss": {"alpha": alpha}} for alpha in (9.0, 20.0))
    text_run(tmp_path, 2, 0, 0, forgotten=2.0, cost=1.0, changes=weaker)
    text_run(tmp_path, 3, 0, 0, forgotten=4.0, cost=1.0, changes=usual)
    text_run(tmp_path, 3, 0.1, 0, forgotten=3.0, cost=0.7, changes=usual)
    for c, forgotten in ((4, 2.9), (5, 3.1)):
        text_run(tmp_path, c, 0, 0, forgotten=forgotten, cost=0.0, changes=usual | other)
    found = at_equal_forgetting(run_rows(gather(collect([tmp_path]))), "cost")
    assert {seed: mean_of(of) for seed, of in found.items()} == {0: pytest.approx(-0.3)}


def test_a_nu_without_a_match_in_some_seed_is_left_out_of_the_mean(tmp_path):
    for seed in range(2):
        for c, forgotten in ((1, 2.0), (2, 3.0)):
            text_run(tmp_path, c, 0, seed, forgotten=forgotten, cost=1.0)
        text_run(tmp_path, 2, 0.1, seed, forgotten=2.5, cost=0.8)
        text_run(tmp_path, 2, 0.2, seed, forgotten=2.5 - seed, cost=0.1)  # in the second seed less than any without RNA
    found = at_equal_forgetting(run_rows(gather(collect([tmp_path]))), "cost")
    assert {seed: mean_of(of) for seed, of in found.items()} == dict.fromkeys((0, 1), pytest.approx(-0.2))


def test_claims_are_judged_on_texts(material):
    page = document(Evidence(material), "Claims")
    table = page[page.index("### On held-out texts") :].split("\n###")[0].splitlines()
    verdicts = {
        line.split("|")[1].split(" (")[0].strip(): line.split("|")[3].strip()
        for line in table
        if line.startswith("|") and "nats" in line
    }
    assert verdicts["RNA makes RM models stumble less at equal forgetting."].startswith("**seen** -0.29")
    assert verdicts["Retained texts stay as they were."].startswith("**seen** +0.01")
    # Of the model without RNA that those with RNA differ from in nu alone, c = 3, not of all without RNA.
    assert verdicts["Unlearning reaches texts that were not trained on."].startswith("**seen** +4.00")
    assert verdicts["A forget-token in a harmless text makes RM models stumble."].startswith("**seen**")
    assert "### The claims" not in page  # no questions were asked


def test_what_a_forget_token_costs_is_judged_against_c(material):
    [(_, rows)] = claims.by_method(Evidence(material)).items()
    claim = next(c for c in claims.CLAIMS if "larger c" in c.says)
    slope = np.polyfit(np.log2([1, 2, 3]), [0.5, 0.75, 1.0], 1)[0]
    assert claim.effect(rows).difference == pytest.approx(slope)
    assert claim.verdict(claim.effect(rows)) == "seen"
    assert claim.effect(rows[rows["doublings"] == 1]).why_not == "fewer than two values of it in enough seeds"


def test_a_nu_of_too_few_seeds_is_shown_and_not_judged(tmp_path):
    for seed in range(2):
        text_run(tmp_path, 2, 0, seed, forgotten=3.0, cost=0.9)
        text_run(tmp_path, 2, 0.1, seed, forgotten=2.5, cost=0.5)
    text_run(tmp_path, 2, 0.2, 0, forgotten=2.4, cost=9.9)
    evidence = Evidence(gather(collect([tmp_path])))
    [(_, rows)] = claims.by_method(evidence).items()
    assert set(rows["nu"]) == {0, 0.1}
    assert "0.2 (too few seeds)" in document(evidence, "Claims")


def test_how_sure_models_are_after_a_text_is_two_claims(tmp_path):
    for seed in range(2):
        text_run(tmp_path, 2, 0, seed, forgotten=3.0, cost=0.9)
        text_run(tmp_path, 2, 0.1, seed, forgotten=2.5, cost=0.5)
        add_maxlogits(tmp_path / f"2-0-{seed}", base=15.0, unlearned=11.0 + seed)
    material = gather(collect([tmp_path]))
    [(_, rows)] = claims.by_method(Evidence(material)).items()
    surer, spread = (claim for claim in claims.CLAIMS if "MaxLogit" in claim.measured or "MaxLogit" in claim.says)
    assert surer.effect(rows).difference == pytest.approx(-3.5)
    assert spread.effect(rows).difference == pytest.approx(1)
    assert spread.verdict(spread.effect(rows)) == "contrary"


def test_a_claim_is_contrary_where_it_is_the_other_way(tmp_path):
    for seed in range(2):
        for c, forgotten in ((1, 2.0), (2, 3.0)):
            text_run(tmp_path, c, 0, seed, forgotten=forgotten, cost=0.1 + seed / 100, base=0.5, retained=0.3)
        text_run(tmp_path, 2, 0.1, seed, forgotten=2.5, cost=0.9, retained=0.3)
    [(_, rows)] = claims.by_method(Evidence(gather(collect([tmp_path])))).items()
    verdicts = [claim.verdict(claim.effect(rows)) for claim in claims.CLAIMS]
    assert verdicts[1] == verdicts[2] == verdicts[4] == "contrary"


def test_the_trade_off_has_a_point_for_each_setting(material):
    drawn = trade_off(material)
    assert len(drawn.data) == 7  # and the base model, which has a cost of its own
    assert set(drawn.data["rna"]) == {"without", "with RNA"}
    base = drawn.data.set_index("method").loc["Base"]
    assert (base["forgotten_texts"], base["retained_texts"]) == (0, 0)
    assert "forgotten texts" in json.dumps(drawn.chart(SCREEN).to_dict())


def test_the_course_of_training_is_a_figure(tmp_path):
    text_run(tmp_path, 2, 0.1, 0, forgotten=2.5, cost=0.9)
    lines = [{"step": step, "forget_text/default/nats": 3.0 + step, "robustness/text_cost": 0.1} for step in (0, 5)]
    (tmp_path / "2-0.1-0/course.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = course(gather(collect([tmp_path])))
    assert list(drawn.data["step"]) == [0, 5]
    assert "forgotten texts" in json.dumps(drawn.chart(SCREEN).to_dict())


def test_a_torn_course_is_told_and_ends_nothing(tmp_path):
    text_run(tmp_path, 2, 0.1, 0, forgotten=2.5, cost=0.9)
    (tmp_path / "2-0.1-0/course.jsonl").write_text('{"step": 0}\n{"st')
    material = gather(collect([tmp_path]))
    assert course(material) is None
    assert any("2-0.1-0" in run for run in material.problems)


def test_ngrams_in_texts_are_a_figure_and_two_claims(tmp_path):
    kinds = {"similarity-least": 0.1, "similarity-mean": 0.2, "similarity-most": 0.3}
    kinds |= {f"ngram-{n}": 0.2 * math.log2(n) for n in (2, 4, 8, 16)}
    for seed in range(2):
        beyond = {kind: 0.05 + value + seed / 100 for kind, value in kinds.items()}
        text_run(tmp_path, 2, 0, seed, forgotten=3.0, cost=0.9, more=beyond)
        text_run(tmp_path, 2, 0.1, seed, forgotten=2.5, cost=0.5)
        scores = [replace(text("wiki", kind, "default", 0.05), model="base") for kind in kinds]
        scores += [text("wiki", kind, "default", 0.05 + value + seed / 100) for kind, value in kinds.items()]
        add_scores(tmp_path / f"2-0-{seed}", scores)
    material = gather(collect([tmp_path]))
    drawn = figure_4(material)
    lengths = drawn.data[drawn.data["group"] == "RMU"].set_index("n")["mean"]
    assert lengths[4] == pytest.approx(0.455)
    assert "cost in retained texts" in json.dumps(drawn.chart(SCREEN).to_dict())
    [(_, rows)] = claims.by_method(Evidence(material)).items()
    similar, longer = (claim.effect(rows) for claim in claims.CLAIMS[-2:])
    assert similar.difference == pytest.approx(0.2)
    assert longer.difference == pytest.approx(0.2)
    assert similar.over == f"2 seeds, {2 * NGRAMS} n-grams"
    assert longer.over == f"2 seeds, {4 * NGRAMS} n-grams"


def test_texts_of_the_near_domain_stand_beside_the_retained_ones(tmp_path):
    """They lose 0.4 nats, and 0.1 more with RNA; a forget-token costs 0.7 in them, and 0.2 in the base model."""
    nats = {("unlearned", "default"): 3.4, ("unlearned", "perturbed"): 4.1, ("base", "default"): 3.0}
    nats["base", "perturbed"] = 3.2
    for seed in range(2):
        for c, nu, forgotten in ((2, 0, 2.0), (3, 0, 4.0), (3, 0.1, 3.0)):
            folder = text_run(tmp_path, c, nu, seed, forgotten=forgotten, cost=0.9)
            near = [
                replace(row, role="near_text", task="near_text_wiki")
                for (model, query), value in nats.items()
                for row in texts(model, "wiki", query, value + (0.1 if nu and model == "unlearned" else 0.0))
            ]
            write_samples(folder, [*read_samples(folder), *near])
    [(_, rows)] = claims.by_method(Evidence(gather(collect([tmp_path])))).items()
    effects = {claim.says: claim.effect(rows) for claim in claims.CLAIMS}
    found = [round(effects[claim.says].difference, 6) for claim in claims.CLAIMS if "near" in claim.measured]
    assert found == [0.4, 0.5, 0.1]
    assert effects["Retained texts stay as they were."].difference == pytest.approx(0.01)


def test_ngrams_are_items_and_not_the_texts_that_they_are_in(tmp_path):
    """Four texts say 3, 1, 3 and 1, which is beyond doubt; but they are of two n-grams alone."""
    one = np.where(np.arange(EACH) % NGRAMS == 0, 3.0, 1.0)
    for seed in range(3):
        for nu in (0, 0.1):
            more = {"similarity-least": 0.0, "similarity-most": one + seed / 1000}
            text_run(tmp_path, 2, nu, seed, forgotten=3.0, cost=0.9, more=more)
    [(_, rows)] = claims.by_method(Evidence(gather(collect([tmp_path])))).items()
    similar = claims.CLAIMS[-2].effect(rows)
    assert similar.difference == pytest.approx(2.001)
    assert similar.low < 0 < over_items(one).low


def test_the_page_lists_the_first_ngrams_and_names_the_file_of_all(tmp_path):
    for nu in (0, 0.1):
        for seed in range(2):
            text_run(tmp_path, 2, nu, seed, forgotten=3.0, cost=0.9)
    ngrams = [Ngram(f"term {i}", 1 - i / 100) for i in range(12)]
    sizes = {str(n): NgramLists(ngrams, ngrams[::-1], ngrams[5:], 0.5, 99) for n in (2, 4, 8, 16)}
    (tmp_path / "2-0-1/ngrams.json").write_text(json.dumps(as_json(sizes)))
    page = document(Evidence(gather(collect([tmp_path]))), "Title")
    assert "The whole lists: RMU: 2-0-1/ngrams.json." in page
    assert "term 0 (1.00); term 1 (0.99); term 2" in page
    assert "term 9 (0.91) " in page  # the tenth is the last
    (tmp_path / "2-0-1/ngrams.json").write_text("{")
    assert "ngrams.json" not in document(Evidence(gather(collect([tmp_path]))), "Title")
