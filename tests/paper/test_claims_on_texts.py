"""Held-out texts in the report and among the claims, on made-up runs whose measures are known."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.analysis.made_up import add_scores, difference, made_up_run
from unlearn.analysis.collect import collect
from unlearn.analysis.report.charts import SCREEN
from unlearn.analysis.report.figures import figure_4
from unlearn.analysis.report.material import gather
from unlearn.analysis.report.trade_off import figure as trade_off
from unlearn.analysis.report.training import course
from unlearn.analysis.settings import Setting
from unlearn.paper.claims import texts as claims
from unlearn.paper.claims.document import document
from unlearn.paper.claims.evidence import Evidence
from unlearn.paper.claims.texts import at_equal_forgetting, run_rows
from unlearn.records.names import text_role
from unlearn.records.scores import Score

CORPORA = {"retain": {"wiki": ""}, "forget": {"bio": "", "cyber": ""}}
TEXTS = {"corpora": CORPORA, "documents": None, "words": 80, "place": "quarter", "inserted": 1}


def text_run(root, c, nu, seed, *, forgotten, cost, retained=0.01, control=0.1, base=0.15, changes=None):
    """A run that was asked held-out texts and nothing else."""
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
    folder = root / f"{c}-{nu}-{seed}"
    return made_up_run(folder, argument={"c": c}, nu=nu, seed=seed, changes=changes, scores=scores)


def text(corpus, query, against, value):
    """A difference of nats a token of the unlearned model."""
    role = "retain" if corpus == "wiki" else "forget"
    return difference(text_role(role), corpus, query, "nats", value, against)


def maxlogits(mean, spread, model="unlearned"):
    place = (model, text_role("retain"), "wiki", None, "perturbed")
    return [Score(*place, "maxlogit_mean", mean), Score(*place, "maxlogit_std", spread)]


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
    assert (first["forgotten"], first["cost"], first["control"]) == (3.0, 0.75, 0.1)
    data = trade_off(material).data
    row = data[(data["coefficient"] == "c=2")].iloc[0]
    assert row["seeds"] == 3
    assert math.isclose(row["token_cost"], 0.75 + 0.02 / 3, abs_tol=1e-4)
    assert row["token_cost_low"] < row["token_cost"] < row["token_cost_high"]


def test_of_two_runs_of_a_seed_the_one_with_most_measures_is_taken(tmp_path):
    for name in ("a", "b", "c"):
        text_run(tmp_path / name, 2, 0, 0, forgotten=3.0, cost=0.9)
    add_scores(tmp_path / "b/2-0-0", [*maxlogits(9.0, 1.0, "base"), *maxlogits(8.0, 1.0)])
    assert list(run_rows(gather(collect([tmp_path])))["maxlogit"]) == [-1]


def test_rna_is_compared_at_equal_forgetting(material):
    found = at_equal_forgetting(run_rows(material), "cost")
    assert found.keys() == {0, 1, 2}
    assert math.isclose(found[0], -0.3)
    assert math.isclose(found[1], -0.28)


def test_no_comparison_across_a_wide_gap_or_beyond_the_ends():
    def rows(*plain, rna):
        values = [(0, f, f) for f in plain] + [(1, rna, 0.0)]
        return pd.DataFrame(values, columns=["nu", "forgotten", "cost"]).assign(seed=0, setting=Setting(frozenset()))

    assert at_equal_forgetting(rows(1.0, 2.0, rna=1.5), "cost") == {0: -1.5}
    assert at_equal_forgetting(rows(1.0, 4.0, rna=1.5), "cost") == {}
    assert at_equal_forgetting(rows(1.0, 2.0, rna=2.5), "cost") == {}
    assert at_equal_forgetting(rows(1.0, 2.0, rna=0.5), "cost") == {}


@pytest.mark.parametrize("other", [{"identity.model.layer": 9}, {"inputs.data": {"bio": "e"}}])
def test_runs_of_another_layer_or_other_corpora_are_none_to_interpolate_between(other, tmp_path):
    """They cost nothing at the same forgetting; alpha, steps and rate may differ."""
    usual = {"identity.loss": {"alpha": 9.0}}
    weaker = {"identity.loss": {"alpha": 20.0}, "identity.train": {"steps": 20, "lr": 1e-4}}
    text_run(tmp_path, 2, 0, 0, forgotten=2.0, cost=1.0, changes=weaker)
    text_run(tmp_path, 3, 0, 0, forgotten=4.0, cost=1.0, changes=usual)
    text_run(tmp_path, 3, 0.1, 0, forgotten=3.0, cost=0.7, changes=usual)
    for c, forgotten in ((4, 2.9), (5, 3.1)):
        text_run(tmp_path, c, 0, 0, forgotten=forgotten, cost=0.0, changes=usual | other)
    found = at_equal_forgetting(run_rows(gather(collect([tmp_path]))), "cost")
    assert found == {0: pytest.approx(-0.3)}


def test_claims_are_judged_on_texts(material):
    page = document(Evidence(material), "Claims")
    table = page[page.index("### On held-out texts") :].splitlines()
    verdicts = {
        line.split("|")[1].split(" (")[0].strip(): line.split("|")[3].strip() for line in table if "nats" in line
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
    one_value = rows[rows["doublings"] != 0].assign(doublings=1.0)
    assert claim.effect(one_value).why_not == "fewer than two values of it in enough seeds"


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
        add_scores(tmp_path / f"2-0-{seed}", [*maxlogits(15.0, 4.0, "base"), *maxlogits(11.0 + seed, 5.0)])
    material = gather(collect([tmp_path]))
    [(_, rows)] = claims.by_method(Evidence(material)).items()
    surer, spread = (claim for claim in claims.CLAIMS if "MaxLogit" in claim.measured or "MaxLogit" in claim.says)
    assert surer.effect(rows).difference == pytest.approx(-3.5)
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
        text_run(tmp_path, 2, 0, seed, forgotten=3.0, cost=0.9)
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
