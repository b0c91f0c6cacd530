"""Verdicts on the paper's claims: of made-up runs whose effects are known."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from tests.analysis.made_up import ROLES, add_scores, made_up_run
from unlearn.analysis.collect import collect
from unlearn.analysis.report.answers import by_item
from unlearn.analysis.report.material import gather
from unlearn.cli.main import main
from unlearn.paper.claims.claims import (
    CLAIMS,
    CONTRARY,
    NOT_MEASURED,
    NOT_SEEN,
    OVER_METHODS,
    SEEN,
    Claim,
    at_nu,
    by_coefficient,
    harm_of_control,
    rna_less_plain,
    stumble,
)
from unlearn.paper.claims.contrasts import Contrast, contrast
from unlearn.paper.claims.document import document, judged
from unlearn.paper.claims.evidence import Evidence
from unlearn.paper.claims.theorems import measure_theorems
from unlearn.paper.theory.verdicts import THEOREMS
from unlearn.records.samples import Sample, read_samples, write_samples
from unlearn.records.scores import Score, read_scores, role_means

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


def maxlogits(model, mean):
    place = (model, "retain", "mmlu", None, "perturbed")
    return [Score(*place, "maxlogit_mean", mean)]


def accuracy_of(folder):
    """On retained knowledge, of default queries."""
    return role_means(read_scores(folder), "acc")["retain", "default"]


def runs(root, curve, *, coefficients=None, layers=None, extra=None, base=None):
    """Runs of RMU for each nu of `curve`: nu -> (retain default, retain perturbed, forget); without RNA for each c and
    layer (l = 7 is the rest's).

    `extra` and `base` are query -> share of the retain role, of unlearned and of base models (which else know all).
    """
    extra = extra or {}

    def answers(default, perturbed, forget, near, seed):
        found = {("mmlu", "default"): share(default, seed), ("mmlu", "perturbed"): share(perturbed, seed)}
        found |= {("mmlu", query): share(value, seed) for query, value in extra.items()}
        for query in ("default", "perturbed"):
            found |= {(task, query): share(forget, seed) for task in ROLES["forget"]}
            found |= {(task, query): share(near, seed) for task in ROLES["near"]}
        return found

    def write(folder, seed, nu, near, values, **more):
        queries = ("default", "perturbed", *extra)
        of_base = {("mmlu", query): share(value, 0) for query, value in (base or {}).items()}
        made = answers(*values, near, seed)
        made_up_run(folder, nu=nu, seed=seed, queries=queries, answers=made, base=of_base, **more)
        add_scores(folder, [*maxlogits("base", 20.0), *maxlogits("unlearned", 12.0 + 0.1 * seed)])

    for seed in SEEDS:
        for nu, values in curve.items():
            write(root / f"nu{nu:g}-{seed}", seed, nu, 0.4 + 0.4 * (nu > 0), values)
        for c, values in (coefficients or {}).items():
            write(root / f"c{c:g}-{seed}", seed, 0.0, 0.4, values, argument={"c": c})
        for layer, values in (layers or {}).items():
            write(root / f"l{layer}-{seed}", seed, 0.0, 0.4, values, changes={"identity.model.layer": layer})
    return Evidence(gather(collect([root])))


THREE_PHASES = {
    0.0: (0.8, 0.5, 0.3), 0.1: (0.9, 0.7, 0.3), 0.3: (0.9, 0.8, 0.3), 1.0: (0.9, 0.5, 0.3), 2.0: (0.9, 0.9, 0.8),
}  # fmt: skip


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """The paper's findings, all of them."""
    [found] = runs(
        tmp_path_factory.mktemp("three"),
        THREE_PHASES,
        coefficients={3.25: (0.8, 0.6, 0.3), 13.0: (0.8, 0.4, 0.3)},
        layers={8: (0.8, 0.6, 0.3), 9: (0.8, 0.1, 0.3)},
        extra={
            "control": 0.7, "similarity-most": 0.4, "similarity-least": 0.6,
            "ngram-2": 0.6, "ngram-4": 0.5, "ngram-8": 0.4, "ngram-16": 0.3,
        },
        base={"perturbed": 0.9, "control": 0.9, "ngram-4": 0.9, "ngram-8": 0.8, "ngram-16": 0.7},
    ).subjects  # fmt: skip
    return found


@pytest.fixture(scope="module")
def pair_of_models(tmp_path_factory):
    root = tmp_path_factory.mktemp("pair")
    return root, runs(root, {0.0: (0.8, 0.5, 0.3), 0.1: (0.8, 0.6, 0.3)})


@pytest.fixture
def pair(pair_of_models):
    """Folder and evidence of models without RNA and with it. What a test writes there is removed."""
    yield pair_of_models
    for file in pair_of_models[0].rglob("theory.json"):
        file.unlink()


EFFECTS = [20, 20, 30, 20, 0, 10, 40, 40, -10, -20, -30, 40, 50, -8, -2, -20, 0]


@pytest.mark.parametrize(
    ("claim", "effect"), list(zip(CLAIMS, EFFECTS, strict=True)), ids=lambda c: getattr(c, "says", "")
)
def test_every_claim_measures_what_was_made_up_and_is_contrary_where_it_is_the_other_way(subject, claim, effect):
    """The base model loses 10 points under perturbation, and as much as the other with each doubling of n-grams."""
    found = claim.effect(subject)
    assert found.difference == pytest.approx(effect, abs=0.5 if "MaxLogit" in claim.measured else 0.1)
    assert claim.verdict(found) == (NOT_SEEN if claim.says.startswith("Longer") else SEEN)
    if effect:
        assert claim.verdict(replace(found, low=-found.high, high=-found.low)) == CONTRARY


def test_what_every_nu_takes_away_needs_no_choice(subject):
    found = {nu: at_nu(subject, setting) for nu, setting in subject.compared.items()}
    assert [drop.difference for drop, _, _ in found.values()] == pytest.approx([20] * 4, abs=0.1)
    taken = {nu: back.difference for nu, (_, back, _) in found.items()}
    assert taken == pytest.approx({0.1: 10, 0.3: 20, 1.0: -10, 2.0: 30}, abs=0.1)
    remembered = {nu: more.difference for nu, (_, _, more) in found.items()}
    assert remembered == pytest.approx({0.1: 0, 0.3: 0, 1.0: 0, 2.0: 50}, abs=0.1)


def rows_of(page, title):
    """The cells of a table's rows about RMU."""
    lines = page.partition(f"### {title}\n")[2].partition("###")[0].splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| RMU")]


def test_what_rna_takes_away_is_told_of_every_nu_and_as_a_share_of_a_drop_beyond_doubt(tmp_path):
    sure = document(runs(tmp_path / "sure", {0.0: (0.8, 0.3, 0.3), 0.1: (0.8, 0.6, 0.3), 0.3: (0.8, 0.2, 0.4)}), "")
    cells = rows_of(sure, "What every nu takes away")
    assert [(row[1], row[3]) for row in cells] == [("0.1", "60 %"), ("0.3", "-20 %")]
    assert cells[0][4] == "0.0 (0.0 .. 0.0; 3 seeds)"
    assert cells[1][4].startswith("10.0 (")
    assert rows_of(sure, "What RNA takes away")[0][-1] == "60 %"  # of 50 points 30
    small = document(runs(tmp_path / "small", {0.0: (0.8, 0.7, 0.3), 0.1: (0.8, 0.8, 0.3)}), "")  # 4 of 40 questions
    assert rows_of(small, "What RNA takes away")[0][-1] == "–"


def test_of_several_layers_with_rna_the_one_with_most_runs_is_judged(tmp_path):
    """Not the one that does best: that would be chosen by what it is judged by."""
    runs(tmp_path, {0.0: (0.7, 0.5, 0.3), 0.1: (0.7, 0.6, 0.3), 0.3: (0.7, 0.5, 0.3)})
    for nu in (0.0, 0.1):
        best = {("mmlu", query): [True] * ASKED for query in ("default", "perturbed")}
        made_up_run(tmp_path / f"deep-{nu}", nu=nu, answers=best, changes={"identity.model.layer": 9})
    [s] = Evidence(gather(collect([tmp_path]))).subjects
    assert list(s.by_nu) == [0.1, 0.3]
    assert len(s.own_seeds) == len(SEEDS)
    assert list(s.by_layer) == [7, 9]


def test_a_subject_is_a_model_without_rna_and_what_differs_in_nu_c_or_layer_alone(subject):
    assert list(subject.by_nu) == [0.1, 0.3, 1.0, 2.0]
    assert list(subject.by_coefficient) == [3.25, 6.5, 13.0]
    assert subject.coefficient == "c"
    assert list(subject.by_layer) == [7, 8, 9]
    assert subject.best_nu == {0: 0.3, 1: 0.3, 2: 0.3}


def test_where_robustness_only_rises_or_only_falls_there_is_no_later_phase(tmp_path):
    decline, third = (next(c for c in CLAIMS if c.place.endswith(phase)) for phase in ("phase II", "phase III"))
    rising = {nu: (0.8, 0.4 + 0.1 * i, 0.3) for i, nu in enumerate((0.0, *NUS))}
    [s] = runs(tmp_path / "rising", rising).subjects
    assert decline.effect(s).difference == third.effect(s).difference == 0
    assert decline.verdict(decline.effect(s)) == third.verdict(third.effect(s)) == NOT_SEEN
    falling = {nu: (0.8, 0.8 - 0.1 * i, 0.3) for i, nu in enumerate((0.0, *NUS))}
    [s] = runs(tmp_path / "falling", falling).subjects
    assert decline.effect(s).difference == pytest.approx(-30, abs=0.1)
    assert third.effect(s).difference == 0


def test_nu_is_chosen_on_one_half_and_measured_on_the_other(tmp_path):
    """A nu that is good on the first half of the questions alone is chosen, and found to be worth nothing."""
    half = [i // 4 % 2 == 0 for i in range(ASKED)]
    neither = [False] * ASKED
    for seed in SEEDS:
        for nu, right in ((0.0, neither), (0.1, half), (0.3, neither)):
            made_up_run(tmp_path / f"{nu}-{seed}", nu=nu, seed=seed, answers={("mmlu", "perturbed"): right})
    [s] = Evidence(gather(collect([tmp_path]))).subjects
    assert set(s.best_nu.values()) == {0.1}
    effect = rna_less_plain("retain", "perturbed")(s)
    assert effect.difference == 0


def test_nu_is_chosen_from_the_other_seeds(tmp_path):
    """Each nu is good in a seed of its own by chance: chosen from the others, it is worth nothing."""
    for seed in SEEDS:
        made_up_run(tmp_path / f"plain-{seed}", seed=seed, answers={("mmlu", "perturbed"): share(0.5, 0)})
        for nu in (0.1, 0.2, 0.3):
            right = share(1.0 if round(10 * nu) == seed + 1 else 0.5, 0)
            made_up_run(tmp_path / f"{nu}-{seed}", nu=nu, seed=seed, answers={("mmlu", "perturbed"): right})
    [s] = Evidence(gather(collect([tmp_path]))).subjects
    assert rna_less_plain("retain", "perturbed")(s).difference == 0


def test_a_nu_of_too_few_seeds_is_left_out_and_said(tmp_path):
    curve = {0.0: (0.8, 0.4, 0.3), 0.1: (0.8, 0.4, 0.3), 1.0: (0.8, 0.7, 0.3)}
    runs(tmp_path, curve)
    made_up_run(tmp_path / "alone", nu=4.0, answers={("mmlu", "perturbed"): [True] * ASKED})
    evidence = Evidence(gather(collect([tmp_path])))
    [s] = evidence.subjects
    assert set(s.best_nu.values()) == {1.0}
    assert "4 (too few seeds)" in document(evidence, "")


def test_of_several_arguments_the_one_that_was_varied_is_the_coefficient(tmp_path):
    for seed in SEEDS:
        for nu, c in ((0.0, 3.0), (0.0, 6.0), (0.1, 6.0)):
            made_up_run(tmp_path / f"{nu}-{c}-{seed}", nu=nu, seed=seed, argument={"b_power": 2.0, "c": c})
    [s] = Evidence(gather(collect([tmp_path]))).subjects
    assert (s.coefficient, list(s.by_coefficient)) == ("c", [3.0, 6.0])


def test_a_method_without_an_argument_has_no_such_curve(tmp_path):
    for seed in SEEDS:
        for nu in (0.0, 0.1):
            made_up_run(tmp_path / f"{nu}-{seed}", nu=nu, seed=seed, argument={"norm": "sample"})
    [s] = Evidence(gather(collect([tmp_path]))).subjects
    assert by_coefficient(s).why_not
    row = next(line for line in document(s.evidence, "Mine").splitlines() if line.startswith("| RMU"))
    assert row.rstrip(" |").endswith("–")  # the runs' last column: no coefficient


def test_a_failed_seed_of_one_coefficient_leaves_the_slope(tmp_path):
    runs(tmp_path, {0.0: (0.8, 0.5, 0.3), 0.1: (0.8, 0.6, 0.3)}, coefficients={13.0: (0.8, 0.4, 0.3)})
    made_up_run(tmp_path / "c26", argument={"c": 26.0}, answers={("mmlu", "perturbed"): [False] * ASKED})
    [s] = Evidence(gather(collect([tmp_path]))).subjects
    assert by_coefficient(s).difference == pytest.approx(-10, abs=0.1)


def test_runs_that_were_asked_other_words_are_not_paired(tmp_path):
    for seed in SEEDS:
        for nu, words in ((0.0, "a"), (0.1, "b")):
            changes = {"inputs.query_words": {"perturbed": "w", "control": words}}
            queries = ("default", "perturbed", "control")
            made_up_run(tmp_path / f"{nu}-{seed}", nu=nu, seed=seed, queries=queries, changes=changes)
    [s] = Evidence(gather(collect([tmp_path]))).subjects
    assert "words" in rna_less_plain("retain", "control")(s).why_not
    assert not rna_less_plain("retain", "perturbed")(s).why_not


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
    assert set(s.best_nu.values()) == {0.1}


@pytest.mark.parametrize(("slope", "verdict"), [(-1, SEEN), (1, CONTRARY), (0, NOT_MEASURED)])
def test_maxlogit_and_drop_are_correlated_over_all_methods(tmp_path, slope, verdict):
    for number, (method, nu, seed) in enumerate(product(("rmu", "rsv"), (0.0, 0.1), (0, 1, 2))):
        folder = made_up_run(tmp_path / str(number), method=method, nu=nu, seed=seed)
        drop = 0.1 + 0.01 * number + 0.001 * (number % 2)
        measures = {"maxlogit_mean": 12.0 + slope * number, "acc": accuracy_of(folder) - drop}
        if nu:  # is no part of it
            measures = {"maxlogit_mean": 20.0}
        place = ("unlearned", "retain", "mmlu", None, "perturbed")
        add_scores(folder, [Score(*place, name, value) for name, value in measures.items()])
    found = OVER_METHODS.effect(Evidence(gather(collect([tmp_path]))).subjects[0])
    assert OVER_METHODS.verdict(found) == verdict
    if slope:
        assert found.seeds == 6
        assert found.difference == pytest.approx(slope, abs=0.02)


def test_what_differs_between_methods_alone_is_no_correlation(tmp_path):
    """Of each method nothing goes with anything; all of one are surer, and stumble less, than all of the other."""
    for (place, method), nu, seed in product(enumerate(("rmu", "rsv")), (0.0, 0.1), range(4)):
        folder = made_up_run(tmp_path / f"{method}-{nu}-{seed}", method=method, nu=nu, seed=seed)
        drop = 0.3 - 0.2 * place + 0.01 * (seed % 2)
        measures = {"maxlogit_mean": 12 + 5 * place + 0.1 * (seed // 2), "acc": accuracy_of(folder) - drop}
        of_task = ("unlearned", "retain", "mmlu", None, "perturbed")
        add_scores(folder, [Score(*of_task, name, value) for name, value in measures.items()])
    found = OVER_METHODS.effect(Evidence(gather(collect([tmp_path]))).subjects[0])
    assert found.difference == pytest.approx(0, abs=1e-6)
    assert OVER_METHODS.verdict(found) == NOT_SEEN
    assert found.high == pytest.approx(np.tanh(1.96 / 2), abs=1e-3)  # 8 models, 2 methods: 1 / sqrt(8 - 2 - 2)


def interval(low, high):
    return Contrast((low + high) / 2, seeds=3, low=low, high=high)


def test_questions_about_one_fact_are_one_item():
    samples = [("mmlu", Sample("base", "near", "bio", "default", i, "", i != 1, fact=str(i // 2))) for i in range(4)]
    samples.append(("mmlu", Sample("base", "near", "cyber", "default", 0, "", correct=None)))  # has no value
    assert by_item(samples, lambda s: s.correct) == {"mmlu": {("bio", "0"): 0.5, ("bio", "1"): 1.0}}


def test_questions_that_got_the_same_forget_token_are_one_item(tmp_path):
    """Two tokens, of which one does all the harm: over 40 questions it is seen, over two tokens it is not."""
    for words in (["virus"], ["virus", "harmless"]):
        for seed, nu in product(SEEDS, (0.0, 0.1)):
            right = {("mmlu", "default"): [True] * ASKED, ("mmlu", "perturbed"): [i % 2 == 1 for i in range(ASKED)]}
            folder = made_up_run(tmp_path / f"{len(words)}/{nu}-{seed}", nu=nu, seed=seed, answers=right)
            known = [
                replace(s, inserted=words[s.id % len(words)]) if s.query == "perturbed" else s
                for s in read_samples(folder)
            ]
            write_samples(folder, known)
    [one], [two] = (Evidence(gather(collect([tmp_path / name]))).subjects for name in "12")
    claim = CLAIMS[0]
    assert claim.verdict(stumble(one)) == SEEN  # of this very token
    assert claim.verdict(stumble(two)) == NOT_SEEN
    assert (stumble(two).difference, stumble(two).over) == (pytest.approx(50), "3 seeds, 2 questions, facts or words")


def test_the_verdicts_below_a_heading_are_corrected_for_their_number():
    """Of 40 effects, one in 40 is seen by chance; what is far from 0 stays."""
    values = np.random.default_rng(0).normal(size=(40, 3, 20))
    claim = Claim("RNA", "here", "it", lambda parts: contrast(parts, "texts"), above=0)
    effects = {f"{i}": [{"x": dict(enumerate(row + 10 * (i == 0)))} for row in of] for i, of in enumerate(values)}
    [row] = judged([claim], effects)
    assert "Holm: seen" in row["0"]
    by_chance = [cell for name, cell in row.items() if name.isdigit() and name != "0" and "**not seen**" not in cell]
    assert by_chance
    assert all("Holm: not seen" in cell for cell in by_chance)


def test_a_verdict_asks_for_the_whole_interval():
    positive = Claim("", "", "", stumble, above=0)
    assert positive.verdict(interval(1, 3)) == SEEN
    assert positive.verdict(interval(-1, 9)) == NOT_SEEN
    assert positive.verdict(interval(-3, -1)) == CONTRARY
    assert positive.verdict(Contrast(5.0, seeds=1)) == NOT_MEASURED
    same = Claim("", "", "", stumble, above=-5, below=5)
    assert same.verdict(interval(-4, 4)) == SEEN
    assert same.verdict(interval(-4, 6)) == NOT_SEEN
    assert same.verdict(interval(6, 9)) == CONTRARY
    negative = Claim("", "", "", stumble, below=0)
    assert negative.verdict(interval(-3, -1)) == SEEN
    assert negative.verdict(interval(1, 3)) == CONTRARY


def test_a_cell_tells_verdict_effect_interval_and_seeds(subject):
    page = document(subject.evidence, "In miniature")
    assert page.startswith("# In miniature\n")
    [line] = [line for line in page.splitlines() if line.startswith("| A forget-token in a harmless")]
    assert "**seen** +20.0 (+0.9 .. +39.1; 3 seeds, 40 questions, facts or words; Holm: not seen)" in line
    [line] = [line for line in page.splitlines() if line.startswith("| RM models are less sure")]
    assert "80 questions or facts; Holm: seen)" in line
    assert "The theorems" not in page


def near(value):
    return {"mean": value, "low": value - 0.02, "high": value + 0.02}


def differences(p, not_normal):
    return {
        "eta": near(0.2),
        "isotropy": {"directions": 6.0, "p": p},
        "mean": {"share": 0.02, "p": 0.3},
        "normality": {"random directions": {"rejected": not_normal}},
    }


def theory(**changes):
    rows = [
        {
            "nu_to_eta": ratio,
            "measured": near(m),
            "linear": {"mean": m + 0.015},
            "published": {"mean": m + 0.05},
            "exact": {"mean": m + 0.01},
        }
        for ratio, m in ((0.1, 0.13), (1.0, 0.3))
    ]
    thirds = {part: {"rows": [{"nu_to_eta": 1.0, "measured": near(m)}]} for part, m in (("low", 0.2), ("high", 0.4))}
    found = {
        "dim": 96,
        "assumption_4_2": differences(0.001, 1.0),
        "theorem_4_3": {"linear_breaks_at": 10.0},
        "theorem_5_2": {"injected_small": {"all": {"rows": rows}}, "injected": {"all": {"rows": rows}} | thirds},
    }
    return found | changes


@pytest.mark.parametrize(("nu", "verdict"), [(0.21, "**not seen**"), (0.25, "**contrary**")])
def test_theorems_are_judged_from_theory_json(pair, nu, verdict):
    root, evidence = pair
    (root / "nu0-0/theory.json").write_text(json.dumps(theory()))
    against = {
        "rejected": near(0.2),
        "predicted": {"nu": {"exact": {"mean": 0.46}}},
        "rm_loss_rises": near(0.6),
        "nu": nu,
        "nu_measured": 0.2,
        "assumption_5_1": differences(0.5, 0.0),
    }
    (root / "nu0.1-0/theory.json").write_text(json.dumps(theory(against=against)))
    page = document(evidence, "")
    table = page.split("## The theorems")[1].splitlines()[4:]
    assert [line.split("|")[3].strip() for line in table if line.startswith("|")] == [
        "**contrary**", "**seen**", "**contrary**", "**seen**", "**seen**", "**seen**", "**seen**",
        "**seen**", "**seen**", verdict, "**contrary**",
    ]  # fmt: skip
    assert len(THEOREMS) == 11
    assert "0.200 and 0.400, smallest and largest" in page
    assert "RMU, nu 0, seed 0: 6.0 of 96 directions" in page
    assert "20.0 % (18.0 .. 22.0), predicted 46.0 %" in page


def test_rejection_grows_with_the_gradient_ratio_if_the_thirds_say_so():
    [claim] = [claim for claim in THEOREMS if "gradients" in claim.says]
    assert claim.verdict([theory()]) == SEEN
    falling = theory()
    thirds = falling["theorem_5_2"]["injected"]
    thirds["low"], thirds["high"] = thirds["high"], thirds["low"]
    assert claim.verdict([falling]) == CONTRARY
    thirds["high"] = thirds["low"]
    assert claim.verdict([falling]) == NOT_SEEN


def test_a_form_is_judged_where_the_losses_are_linear():
    published, exact = (claim for claim in THEOREMS if "small noise" in claim.says)
    found = theory()
    *_, row = found["theorem_5_2"]["injected_small"]["all"]["rows"]
    row["exact"] = {"mean": 0.5}
    assert exact.verdict([found]) == CONTRARY
    row["linear"] = {"mean": 0.5}  # there it is not the form that fails
    assert exact.verdict([found]) == SEEN
    assert published.verdict([found]) == CONTRARY
    for other in found["theorem_5_2"]["injected_small"]["all"]["rows"]:
        other["linear"] = {"mean": 0.6}
    assert exact.verdict([found]) == published.verdict([found]) == NOT_SEEN


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((0.3, 0.5), NOT_SEEN), ((0.4, 0.5), SEEN), ((0.3, 0.4), CONTRARY), ((0.5, 0.6), CONTRARY)],
)
def test_a_wide_interval_shows_no_agreement(interval, verdict):
    [claim] = [claim for claim in THEOREMS if "reject as often" in claim.says]
    low, high = interval
    found = {"rejected": {"low": low, "high": high}, "predicted": {"nu": {"exact": {"mean": 0.46}}}}
    assert claim.verdict([{"against": found}]) == verdict


def test_the_page_begins_with_the_preface_and_tells_what_runs_differ_in(tmp_path):
    for seed, nu in product(SEEDS, (0.0, 0.1)):
        made_up_run(tmp_path / f"{nu}-{seed}", nu=nu, seed=seed, changes={"code.commit": str(seed) * 40})
    page = document(Evidence(gather(collect([tmp_path]))), "Made up", "What was run.\n")
    assert page.startswith("# Made up\n\nWhat was run.\n\nA claim is about")
    assert "\n**Note:** These runs are of 3 code versions" in page


@pytest.mark.parametrize("known", [False, True])
def test_what_was_measured_of_a_model_with_rna_is_not_lost(pair, monkeypatch, known):
    root, evidence = pair
    if known:
        (root / "nu0.1-0/theory.json").write_text(json.dumps(theory()))  # beside none without RNA
        assert "The theorems" not in document(evidence, "")
    measured = {}
    monkeypatch.setattr(
        "unlearn.paper.theory.measure.theory", lambda run, beside, **how: measured.update({run.name: how})
    )
    measure_theorems(evidence.subjects, 8)
    assert {name: how["injected"] for name, how in measured.items()} == {"nu0-0": True, "nu0.1-0": known}


def test_a_theory_json_of_another_version_is_told(pair):
    root, evidence = pair
    (root / "nu0-0/theory.json").write_text(json.dumps(theory(theorem_5_2={})))
    page = document(evidence, "")
    assert "theory.json lacks what this needs" in page
    assert "6.0 of 96 directions" in page


def test_one_seed_is_not_measured_and_no_pair_is_an_error(tmp_path, capsys):
    for nu in (0.0, 0.1, 0.3, 1.0):
        made_up_run(tmp_path / f"{nu}", nu=nu)
    main(["claims", str(tmp_path)])
    page = capsys.readouterr().out
    assert page.count("not measured: ") == len(CLAIMS) + 1
    assert "**" not in page.split("## The claims")[1]
    with pytest.raises(SystemExit, match="nothing to judge"):
        main(["claims", str(tmp_path / "0.0")])


@pytest.mark.slow  # alone writes the whole page of claims
def test_the_page_is_written(tmp_path, subject):
    folders = {str(run.folder) for run in subject.evidence.material.runs}
    main(["claims", *sorted(folders), "-o", str(tmp_path / "claims.md"), "--title", "Mine"])
    assert (tmp_path / "claims.md").read_text().startswith("# Mine\n")
