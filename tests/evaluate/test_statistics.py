"""Paired comparisons: difference, interval, McNemar's test."""

import numpy as np
import pytest
from scipy import stats

from tests.analysis.made_up import ROLES, made_up_run
from unlearn.analysis.compare import compare, compare_runs, differing_questions, read_record
from unlearn.cli.main import main
from unlearn.evaluate.statistics import paired


def test_difference_and_counts():
    r = paired([True, True, False, False, True], [True, False, True, False, False])
    assert (r.questions, r.only_a, r.only_b) == (5, 2, 1)
    assert r.difference == pytest.approx(-0.2)
    assert r.low <= r.difference <= r.high


def test_mcnemar_is_the_exact_one():
    """Ten discordant questions, one of them for b: twice the binomial tail, 2 (1 + 10) / 1024."""
    a, b = [True] * 9 + [False] + [True] * 20, [False] * 9 + [True] + [True] * 20
    assert paired(a, b).p == pytest.approx(2 * (1 + 10) / 1024)


def test_equal_answers_are_no_difference():
    r = paired([True, False] * 10, [True, False] * 10)
    assert (r.difference, r.low, r.high, r.p) == (0, 0, 0, 1)


def test_the_interval_is_scipys_bootstrap():
    rng = np.random.default_rng(1)
    a, b = rng.random(400) < 0.7, rng.random(400) < 0.6
    r = paired(a.tolist(), b.tolist())
    scipys = stats.bootstrap(
        (b.astype(int) - a.astype(int),), np.mean, n_resamples=5000, method="percentile", rng=rng
    ).confidence_interval
    assert (r.low, r.high) == pytest.approx((scipys.low, scipys.high), abs=0.01)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(300):
        a, b = rng.random(200) < 0.6, rng.random(200) < 0.5
        r = paired(a.tolist(), b.tolist(), seed=trial)
        covered += r.low <= -0.1 <= r.high
    assert 0.90 < covered / 300 < 0.99


def test_runs_are_compared_on_the_questions_of_both():
    a = {("mmlu_x", "default"): {0: True, 1: False, 2: True}, ("mmlu_y", "default"): {0: True}}
    b = {("mmlu_x", "default"): {1: True, 2: True, 3: False}, ("mmlu_y", "default"): {0: False}, ("z", "default"): {}}
    found = compare(a, b)
    assert found["mmlu_x", "default"].questions == 2
    assert found["mmlu_x", "default"].difference == 0.5
    assert found["all", "default"].questions == 3
    assert found["all", "default"].difference == 0
    assert ("z", "default") not in found


def test_tasks_are_put_together_by_role():
    a = {(task, "default"): {0: True, 1: True} for task in ("mmlu_x", "mmlu_y", "wmdp_bio")}
    b = {("mmlu_x", "default"): {0: True, 1: True}, ("mmlu_y", "default"): {0: True, 1: False}} | {
        ("wmdp_bio", "default"): {0: False, 1: False}
    }
    found = compare(a, b, {"retain": ["mmlu_x", "mmlu_y"], "forget": ["wmdp_bio"]})
    assert found["retain", "default"].difference == -0.25
    assert found["forget", "default"].difference == -1
    assert ("all", "default") not in found


def test_runs_that_were_asked_otherwise_are_not_compared_and_the_reason_is_told(tmp_path):
    a, b = made_up_run(tmp_path / "a"), made_up_run(tmp_path / "b", nu=0.1, changes={"identity.eval.seed": 1})
    results, refused = compare_runs(a, b)
    assert refused == {"perturbed": "eval.seed differs: 0 and 1"}
    assert {query for _, query in results} == {"default"}


def test_runs_asked_with_and_without_a_chat_template_are_not_compared(tmp_path):
    a, b = made_up_run(tmp_path / "a"), made_up_run(tmp_path / "b", changes={"identity.eval.chat_template": True})
    assert compare_runs(a, b)[1]["default"] == "eval.chat_template differs: None and True"


def test_a_role_that_was_asked_later_is_compared_by_what_that_evaluation_asked(tmp_path):
    """Control queries of the retain role alike, and later of the near role with other words replaced."""
    first, later = {"control": ["retain"]}, {"control": ["near"]}
    folders = []
    for seed in (0, 7):
        own = {"identity.eval.asked_of": first, "identity.eval.queries": ["default", "perturbed", "control"]}
        evaluation = {"tasks": ROLES, "queries": ["control"], "asked_of": later, "seed": seed, "num_fewshot": 0}
        changes = {**own, "evaluations": [evaluation]}
        folders.append(made_up_run(tmp_path / str(seed), queries=("default", "perturbed", "control"), changes=changes))
    a, b = (read_record(folder) for folder in folders)
    assert differing_questions(a, b, "control", "retain") is None
    assert differing_questions(a, b, "control", "near") == "eval.seed differs: 0 and 7"
    assert compare_runs(*folders)[1] == {"control": "eval.seed differs: 0 and 7"}


def test_comparing_in_the_terminal(tmp_path, monkeypatch, capsys):
    right = {("mmlu", "default"): [True] * 3 + [False] * 7}
    made_up_run(tmp_path / "a", answers=right)
    made_up_run(tmp_path / "b", answers={("mmlu", "default"): [True] * 8 + [False] * 2})
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.split()[:2] == ["mmlu", "default"]]
    assert "+50.0" in line
    assert line.split()[-1] == "0.062"  # 2 / 2^5: five questions, all won


@pytest.mark.parametrize(
    ("broken", "told"), [("run.json", "run.json"), ("samples/unlearned/mmlu/default.jsonl", "line 1")]
)
def test_a_broken_run_ends_with_one_line(broken, told, tmp_path, monkeypatch):
    a, b = made_up_run(tmp_path / "a"), made_up_run(tmp_path / "b")
    (b / broken).write_text('{"torn')
    with pytest.raises(SystemExit, match=f"Error: .*{told}"):
        main(["compare", str(a), str(b)])
