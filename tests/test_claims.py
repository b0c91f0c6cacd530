"""Verdicts on the paper's claims: of made-up runs whose effects are known."""

import json
import math

import numpy as np
import pytest

from tests.made_up import ROLES, made_up_run
from unlearn.claims.__main__ import main
from unlearn.claims.claims import (
    CLAIMS,
    CONTRARY,
    NOT_MEASURED,
    NOT_SEEN,
    SEEN,
    Claim,
    by_coefficient,
    by_length,
    decline,
    harm_of_control,
    rna_less_plain,
    stumble,
    third_phase,
)
from unlearn.claims.document import document
from unlearn.claims.evidence import Evidence
from unlearn.claims.theorems import THEOREMS
from unlearn.report.collect import collect
from unlearn.report.contrasts import Contrast
from unlearn.report.material import gather

NUS = (0.1, 0.3, 1.0, 2.0)
SEEDS = (0, 1, 2)
ASKED = 80  # questions of each task, 40 of either half


def share(value, seed):
    """Answers of which `value` are right in each half of the facts, one more for the odd seed."""
    right = np.zeros(ASKED, dtype=bool)
    for half in (0, 1):
        places = [i for i in range(ASKED) if i // 4 % 2 == half]
        right[places[: round(value * len(places)) + seed % 2]] = True
    return list(right)


def runs(root, curve, *, coefficients=None, queries=("default", "perturbed"), extra=None):
    """Runs of RMU for each nu of `curve`: nu -> (retain default, retain perturbed, forget); without RNA for each c."""

    def answers(default, perturbed, forget, seed):
        found = {("mmlu", "default"): share(default, seed), ("mmlu", "perturbed"): share(perturbed, seed)}
        for task in ROLES["forget"]:
            found |= {(task, query): share(forget, seed) for query in ("default", "perturbed")}
        for query, value in (extra or {}).items():
            found["mmlu", query] = share(value, seed)
        return found

    for seed in SEEDS:
        for nu, values in curve.items():
            made_up_run(root / f"nu{nu:g}-{seed}", nu=nu, seed=seed, queries=queries, answers=answers(*values, seed))
        for c, values in (coefficients or {}).items():
            folder = root / f"c{c:g}-{seed}"
            made_up_run(folder, argument={"c": c}, seed=seed, queries=queries, answers=answers(*values, seed))
    return Evidence(gather(collect([root])))


THREE_PHASES = {
    0.0: (0.8, 0.5, 0.3), 0.1: (0.8, 0.6, 0.3), 0.3: (0.8, 0.7, 0.3), 1.0: (0.8, 0.4, 0.3), 2.0: (0.8, 0.6, 0.6),
}  # fmt: skip


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    [found] = runs(
        tmp_path_factory.mktemp("three"),
        THREE_PHASES,
        coefficients={3.25: (0.8, 0.6, 0.3), 13.0: (0.8, 0.4, 0.3)},
        queries=("default", "perturbed", "control", "ngram-2", "ngram-4", "ngram-8", "ngram-16"),
        extra={"control": 0.7, "ngram-2": 0.6, "ngram-4": 0.5, "ngram-8": 0.4, "ngram-16": 0.3},
    ).subjects
    return found


def test_a_subject_is_a_model_without_rna_and_what_differs_in_nu_or_c_alone(subject):
    assert list(subject.by_nu) == [0.1, 0.3, 1.0, 2.0]
    assert list(subject.by_coefficient) == [3.25, 6.5, 13.0]
    assert subject.best_nu == 0.3


def test_effects_are_what_was_made_up(subject):
    assert stumble(subject).difference == pytest.approx(30, abs=0.1)  # the base model answers everything
    assert harm_of_control(subject).difference == pytest.approx(20, abs=0.1)
    assert rna_less_plain("retain", "perturbed")(subject).difference == pytest.approx(20, abs=0.1)
    assert rna_less_plain("forget", "default")(subject).difference == pytest.approx(0, abs=0.1)
    assert by_coefficient(subject).difference == pytest.approx(-10, abs=0.1)
    assert by_length(subject).difference == pytest.approx(-10, abs=0.1)


def test_the_three_phases_are_seen(subject):
    assert decline(subject).difference == pytest.approx(-30, abs=0.1)
    assert third_phase("retain")(subject).difference == pytest.approx(20, abs=0.1)
    assert third_phase("forget")(subject).difference == pytest.approx(30, abs=0.1)


def test_where_robustness_only_rises_or_only_falls_there_is_no_later_phase(tmp_path):
    rising = {nu: (0.8, 0.4 + 0.1 * i, 0.3) for i, nu in enumerate((0.0, *NUS))}
    [s] = runs(tmp_path / "rising", rising).subjects
    assert decline(s) == "robustness is highest at the largest nu that was run"
    assert third_phase("retain")(s) == "there is no decline"
    falling = {nu: (0.8, 0.8 - 0.1 * i, 0.3) for i, nu in enumerate((0.0, *NUS))}
    [s] = runs(tmp_path / "falling", falling).subjects
    assert decline(s).difference == pytest.approx(-30, abs=0.1)
    assert third_phase("retain")(s) == "robustness is lowest at the largest nu that was run"


def test_nu_is_chosen_on_one_half_and_measured_on_the_other(tmp_path):
    """A nu that is good on the first half of the facts alone is chosen, and found to be worth nothing."""
    half = [i // 4 % 2 == 0 for i in range(ASKED)]
    neither = [False] * ASKED
    for seed in SEEDS:
        for nu, right in ((0.0, neither), (0.1, half), (0.3, neither)):
            made_up_run(tmp_path / f"{nu}-{seed}", nu=nu, seed=seed, answers={("mmlu", "perturbed"): right})
    [s] = Evidence(gather(collect([tmp_path]))).subjects
    assert s.best_nu == 0.1
    effect = rna_less_plain("retain", "perturbed")(s)
    assert effect.difference == 0
    assert effect.questions == 40


def test_of_two_runs_of_a_seed_the_one_that_was_asked_more_is_taken(tmp_path):
    """A sweep over nu asks less of the same models than one over seeds."""
    for seed in SEEDS:
        for nu in (0.0, 0.1):
            made_up_run(tmp_path / f"a{nu}-{seed}", nu=nu, seed=seed)
            made_up_run(tmp_path / f"b{nu}-{seed}", nu=nu, seed=seed, queries=("default", "perturbed", "control"))
    [s] = Evidence(gather(collect([tmp_path]))).subjects
    assert harm_of_control(s).seeds == len(SEEDS)


def test_nu_are_compared_over_the_seeds_that_all_have(tmp_path):
    """nu = 0.3 is better in its further seeds alone, which say nothing of nu = 0.1."""
    for seed in (*SEEDS, 3, 4):
        made_up_run(tmp_path / f"plain-{seed}", seed=seed, answers={("mmlu", "perturbed"): share(0.3, 0)})
        good = 0.9 if seed > 2 else 0.4
        made_up_run(tmp_path / f"b-{seed}", nu=0.3, seed=seed, answers={("mmlu", "perturbed"): share(good, 0)})
    for seed in SEEDS:
        made_up_run(tmp_path / f"a-{seed}", nu=0.1, seed=seed, answers={("mmlu", "perturbed"): share(0.5, 0)})
    [s] = Evidence(gather(collect([tmp_path]))).subjects
    assert s.best_nu == 0.1


def interval(low, high):
    return Contrast((low + high) / 2, seeds=3, seeds_low=low, seeds_high=high)


def test_a_verdict_asks_for_the_whole_interval():
    positive = Claim("", "", "", stumble, above=0)
    assert positive.verdict(interval(1, 3)) == SEEN
    assert positive.verdict(interval(-1, 9)) == NOT_SEEN
    assert positive.verdict(interval(-3, -1)) == CONTRARY
    assert positive.verdict(Contrast(5.0, seeds=1)) == NOT_MEASURED
    assert positive.verdict("nothing there") == NOT_SEEN
    same = Claim("", "", "", stumble, above=-5, below=5)
    assert same.verdict(interval(-4, 4)) == SEEN
    assert same.verdict(interval(-4, 6)) == NOT_SEEN
    assert same.verdict(interval(6, 9)) == CONTRARY
    negative = Claim("", "", "", stumble, below=0)
    assert negative.verdict(interval(-3, -1)) == SEEN
    assert negative.verdict(interval(1, 3)) == CONTRARY


def test_the_page_has_every_claim_and_what_was_not_asked_is_not_measured(subject):
    page = document(subject.evidence.material, "In miniature")
    assert page.startswith("# In miniature\n")
    lines = {claim.says: next(line for line in page.splitlines() if claim.says in line) for claim in CLAIMS}
    assert "**seen** +30.0 (" in lines["A forget-token in a harmless question makes RM models stumble."]
    assert "not measured" in lines["N-grams more similar to their documents do more harm."]
    assert "| 67 %" in page  # of the 30 points, 20 are won back
    assert "The theorems" not in page


def theory(**changes):
    rows = [
        {"nu_to_eta": ratio, "measured": {"mean": m, "low": m - 0.02, "high": m + 0.02},
         "published": {"mean": m + 0.05}, "exact": {"mean": m + 0.01}}
        for ratio, m in ((0.1, 0.13), (1.0, 0.3))
    ]  # fmt: skip
    found = {
        "dim": 96,
        "assumption_4_2": {
            "isotropy": {"directions": 6.0, "p": 0.001},
            "mean": {"share": 0.02, "p": 0.3},
            "normality": {"random directions": {"rejected": 1.0}},
        },
        "theorem_4_3": {"linear_breaks_at": 10.0},
        "theorem_5_2": {"injected_small": {"all": {"rows": rows}}, "injected": {"all": {"rows": rows}}},
    }
    return found | changes


def test_theorems_are_judged_from_theory_json(tmp_path):
    runs(tmp_path, {0.0: (0.8, 0.5, 0.3), 0.1: (0.8, 0.6, 0.3)})
    (tmp_path / "nu0-0/theory.json").write_text(json.dumps(theory()))
    against = {
        "rejected": {"mean": 0.2, "low": 0.18, "high": 0.24},
        "predicted": {"nu": {"exact": {"mean": 0.46}}},
    }
    (tmp_path / "nu0.1-0/theory.json").write_text(json.dumps(theory(against=against)))
    page = document(gather(collect([tmp_path])), "")
    verdicts = {t.says: next(line for line in page.splitlines() if t.says in line).split("|")[2] for t in THEOREMS}
    assert [verdict.strip() for verdict in verdicts.values()] == [
        "**contrary**", "**seen**", "**contrary**", "**seen**", "**seen**", "**seen**", "**contrary**",
    ]  # fmt: skip
    assert "RMU, nu 0, seed 0: 6.0 of 96 directions" in page
    assert "20.0 % (18.0 .. 24.0), predicted 46.0 %" in page


def test_one_seed_is_not_measured_and_no_pair_is_an_error(tmp_path, capsys):
    for nu in (0.0, 0.1):
        made_up_run(tmp_path / f"{nu}", nu=nu)
    main([str(tmp_path)])
    assert "**seen**" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="nothing to judge"):
        main([str(tmp_path / "0.0")])


def test_the_page_is_written(tmp_path, subject):
    folders = {str(run.folder) for run in subject.evidence.material.runs}
    main([*sorted(folders), "-o", str(tmp_path / "claims.md"), "--title", "Mine"])
    assert (tmp_path / "claims.md").read_text().startswith("# Mine\n")
    assert not math.isnan(stumble(subject).seeds_low)
