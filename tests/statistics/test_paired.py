"""Paired comparisons: difference, interval, McNemar's test, of lists and of runs."""

from dataclasses import replace

import pytest

from tests.analysis.made_up import made_up_run
from unlearn.analysis.compare import compare, compare_runs
from unlearn.cli.main import main
from unlearn.records.samples import Sample
from unlearn.statistics.paired import paired


def test_difference_and_counts():
    r = paired([True, True, False, False, True], [True, False, True, False, False])
    assert (r.questions, r.only_a, r.only_b) == (5, 2, 1)
    assert r.difference == pytest.approx(-0.2)
    assert r.low <= r.difference <= r.high


def test_mcnemar_is_the_exact_one():
    """Ten discordant questions, one of them for b: twice the binomial tail, 2 (1 + 10) / 1024."""
    a, b = [True] * 9 + [False] + [True] * 20, [False] * 9 + [True] + [True] * 20
    assert paired(a, b).p == pytest.approx(2 * (1 + 10) / 1024)


def test_equal_answers_are_no_difference_and_leave_room_for_one():
    r = paired([True, False] * 10, [True, False] * 10)
    assert (r.difference, r.p) == (0, 1)
    half = 1.96 * (2 / 22 / 22) ** 0.5  # of one question for each side, among 22
    assert (r.low, r.high) == pytest.approx((-half, half))


def test_questions_about_one_fact_are_one():
    """Four questions that are answered alike say no more than one; of unequal numbers, the difference is theirs."""
    a, b = [True, True, False, False, True, True], [True, False, True, False, False, False]
    one = paired(a, b)
    four = paired([x for x in a for _ in range(4)], [x for x in b for _ in range(4)], [i // 4 for i in range(24)])
    assert (four.questions, four.only_a) == (24, 4 * one.only_a)
    assert (four.difference, four.low, four.high, four.p) == pytest.approx((one.difference, one.low, one.high, one.p))
    uneven = paired([True, False, False], [False, True, True], ["x", "y", "y"])
    assert uneven.difference == pytest.approx(1 / 3)


def test_runs_are_compared_fact_by_fact():
    a, b = side(retain__x=dict.fromkeys(range(8), True)), side(retain__x={i: i < 4 for i in range(8)})
    for sample in (a, b):
        place = sample["retain", "x", "default"]
        place.update({i: replace(own, fact=str(i // 4)) for i, own in place.items()})
    assert compare(a, b).results["x", "default"] == paired([True] * 8, [True] * 4 + [False] * 4, [0] * 4 + [1] * 4)
    assert compare(a, b).results["x", "default"].p == 1  # of two facts, one


def side(**tasks):
    """{role__task: {question: whether it was right}} as the samples of a run."""
    places = {}
    for place, right in tasks.items():
        role, _, task = place.partition("__")
        own = [Sample("unlearned", role, task, "default", q, f"{task}{q}", correct=c) for q, c in right.items()]
        places[role, task, "default"] = {sample.id: sample for sample in own}
    return places


def test_runs_are_compared_on_the_questions_of_both():
    a = side(retain__x={0: True, 1: False, 2: True}, retain__y={0: True})
    b = side(retain__x={1: True, 2: True, 3: False}, retain__y={0: False}, retain__z={5: True})
    results = compare(a, b).results
    assert results["x", "default"].questions == 2
    assert results["x", "default"].difference == 0.5
    assert results["retain", "default"].questions == 3
    assert results["retain", "default"].difference == 0
    assert ("z", "default") not in results


def test_questions_of_the_same_number_and_another_content_are_not_paired():
    a, b = side(retain__x={0: True, 1: False}), side(retain__x={0: False, 1: True})
    place = b["retain", "x", "default"]
    place[0] = replace(place[0], question="another")
    assert compare(a, b).results["x", "default"].questions == 1
    place[1] = replace(place[1], question="another")
    assert ("x", "default") not in compare(a, b).results
    assert compare(a, b).refused.keys() == {("retain", "default")}


def test_tasks_are_put_together_by_role():
    a = side(retain__x={0: True, 1: True}, retain__y={0: True, 1: True}, forget__z={0: True, 1: True})
    b = side(retain__x={0: True, 1: True}, retain__y={0: True, 1: False}, forget__z={0: False, 1: False})
    results = compare(a, b).results
    assert results["retain", "default"].difference == -0.25
    assert results["forget", "default"].difference == -1


def test_runs_that_were_asked_otherwise_are_not_compared_and_the_key_is_named(tmp_path):
    a, b = made_up_run(tmp_path / "a"), made_up_run(tmp_path / "b", nu=0.1, changes={"identity.eval.seed": 1})
    comparison = compare_runs(a, b)
    assert comparison.results == {}
    assert set(comparison.refused.values()) == {"eval.seed differs: 0 and 1"}


def test_runs_asked_with_and_without_a_chat_template_are_not_compared(tmp_path):
    a, b = made_up_run(tmp_path / "a"), made_up_run(tmp_path / "b", changes={"identity.eval.chat_template": True})
    assert compare_runs(a, b).refused["retain", "default"] == "eval.chat_template differs: None and True"


def test_comparing_in_the_terminal(tmp_path, monkeypatch, capsys):
    right = {("mmlu", "default"): [True] * 3 + [False] * 7}
    made_up_run(tmp_path / "a", answers=right)
    made_up_run(tmp_path / "b", answers={("mmlu", "default"): [True] * 8 + [False] * 2})
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.split()[:2] == ["mmlu", "default"]]
    assert "+50.0" in line
    assert line.split()[-1] == "0.062"  # 2 / 2^5: five questions, all won


@pytest.mark.parametrize("broken", ["run.json", "scores.parquet", "samples.parquet"])
def test_a_broken_run_ends_with_one_line(broken, tmp_path):
    a, b = made_up_run(tmp_path / "a"), made_up_run(tmp_path / "b")
    (b / broken).write_text('{"torn')
    with pytest.raises(SystemExit, match=f"Error: .*{broken}"):
        main(["compare", str(a), str(b)])
