"""What the report shows of searches: made-up ones, of which nothing was trained."""

import json

import pytest

from tests.analysis.made_up import made_up_run
from tests.sweeps.test_search import OBJECTIVES, made_up, search
from unlearn.analysis.collect import collect
from unlearn.analysis.report.charts import SCREEN
from unlearn.analysis.report.material import gather
from unlearn.analysis.report.search import figures, trials
from unlearn.analysis.report.write import write_report
from unlearn.analysis.searches import FEWEST, find_searches
from unlearn.sweeps.search.study import JOURNAL, Outcome
from unlearn.sweeps.sweep import Sweep


@pytest.fixture
def root(tmp_path):
    """A run, which a report needs."""
    made_up_run(tmp_path / "runs/a")
    return tmp_path


def finished(folder, run=made_up, **changes):
    search(folder, run, **changes).go_on()
    Sweep(folder).write()
    return folder


def with_failures(jobs):
    return {number: Outcome(error="boom") if number == 3 else of for number, of in made_up(jobs).items()}


def test_a_search_has_its_front_its_course_importance_and_all_trials(root):
    finished(root / "searches/one", with_failures, trials=FEWEST + 1, generation=FEWEST + 1)
    material = gather(collect([root]), find_searches([root]))
    [found] = material.searches
    assert (len(found.trials), len(found.complete)) == (FEWEST + 1, FEWEST)
    assert {name: round(sum(shares.values()), 6) for name, shares in found.importance.items()} == dict.fromkeys(
        OBJECTIVES, 1
    )
    data = trials(found)
    assert list(data["trial"]) == [number for number in range(FEWEST + 1) if number != 3]
    assert (data.loc[data["kind"] == "breaks a bound", "retain_text"] > 0.5).all()
    assert (data.loc[data["kind"] != "breaks a bound", "retain_text"] <= 0.5).all()
    [figure] = figures(material)
    assert f"{FEWEST} complete of {FEWEST + 1} trials" in figure.caption
    panels, parallel = figure.chart(SCREEN).to_dict()["vconcat"]
    titles = [panel["title"] for panel in panels["concat"]]
    assert titles == ["The front", "Course of forget_text", "Course of forget_token_cost", "Importance of keys"]
    [lines] = [
        rows
        for rows in figure.chart(SCREEN).to_dict()["datasets"].values()
        if "place" in rows[0] and "trial" in rows[0]
    ]
    assert all(0 <= line["place"] <= 1 for line in lines)
    assert {line["axis"] for line in lines} == {
        "rna.nu",
        "train.lr",
        "method.c",
        "forget_text",
        "forget_token_cost",
        "retain_text",
    }
    assert parallel["title"] == "All trials"
    failed = [rows for rows in figure.chart(SCREEN).to_dict()["datasets"].values() if "error" in rows[0]]
    assert failed == [[{"trial": 3, "state": "failed", "error": "boom"}]]


def test_a_trial_that_diverged_does_not_squash_the_others(root):
    def with_one_far_away(jobs):
        outcomes = dict(made_up(jobs))
        if 3 in outcomes:
            far = dict.fromkeys(outcomes[3].figures, 1e6)
            outcomes[3] = Outcome(outcomes[3].folder, far)
        return outcomes

    finished(root / "searches/one", with_one_far_away, trials=8, generation=8)
    [figure] = figures(gather(collect([root]), find_searches([root])))
    front = figure.chart(SCREEN).to_dict()["vconcat"][0]["concat"][0]
    kept = figure.data[figure.data["kind"] != "breaks a bound"]
    for axis, name in (("x", "forget_text"), ("y", "forget_token_cost")):
        low, high = front["layer"][1]["encoding"][axis]["scale"]["domain"]
        assert low <= kept[name].min() <= kept[name].max() <= high < 1e3
    assert "lie outside of the axes: 3." in figure.caption


def test_the_course_is_the_best_trial_that_keeps_the_bounds(root):
    finished(root / "searches/one", trials=8, generation=4, objectives={"forget_text": "max"})
    [figure] = figures(gather(collect([root]), find_searches([root])))
    spec = figure.chart(SCREEN).to_dict()
    [best] = [rows for rows in spec["datasets"].values() if set(rows[0]) == {"trial", "forget_text"}]
    kept = figure.data[figure.data["kind"] != "breaks a bound"].set_index("trial")["forget_text"]
    assert [row["forget_text"] for row in best] == [kept[kept.index <= row["trial"]].max() for row in best]
    assert "needs 20 complete trials; there are 8." in figure.caption


def test_a_damaged_journal_is_told_and_ends_nothing(root, capsys):
    finished(root / "searches/good", trials=4)
    bad = finished(root / "searches/bad", trials=4)
    (bad / JOURNAL).write_text('{"op_code": 99}\n')
    write_report([root], root / "page.html")
    assert "Search bad is not shown: search.log cannot be read" in capsys.readouterr().err
    page = (root / "page.html").read_text()
    assert "Search · good" in page
    assert "Search · bad" not in page
    assert json.dumps("The front")[1:-1] in page
