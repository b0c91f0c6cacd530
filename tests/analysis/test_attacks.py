"""What attacks bring back, in the report and the claims: of made-up runs whose attacks are known."""

import json
from dataclasses import replace

import pytest

from tests.analysis.made_up import ROLES, made_up_run
from unlearn.analysis.collect import collect
from unlearn.analysis.report.attacks import DISJOINT, attack_rows, figure, levels, strongest
from unlearn.analysis.report.charts import SCREEN
from unlearn.analysis.report.material import gather
from unlearn.paper.claims.attacks import by_method, claims
from unlearn.paper.claims.document import document
from unlearn.paper.claims.evidence import Evidence
from unlearn.records.attacks import HALVES, AttackAbout, AttackScore, read_attack, write_attack
from unlearn.records.scores import Score

PLAIN = 0.28  # accuracy on what was forgotten, without an attack


def asked(forget, model="unlearned", robust=0.6):
    """Scores with this accuracy on the forgotten, and on the retained under perturbation."""
    scores = [Score(model, "forget", task, None, "default", "acc", forget) for task in ROLES["forget"]]
    return scores + [Score(model, "retain", task, None, "perturbed", "acc", robust) for task in ROLES["retain"]]


def nats(forgotten, model="unlearned"):
    return [Score(model, "forget_text", "papers", None, "default", "nats", forgotten)]


def leave(folder, attack, levels, *, questions="q", arguments=None, suffix="0"):
    """The files of an attack: level -> scores."""
    rows = [
        AttackScore(attack, float(level), f"{level} bits", score)
        for level, scores in levels.items()
        for score in scores
    ]
    home = folder / "attacks" / f"{attack}-{suffix}"
    home.mkdir(parents=True, exist_ok=True)
    write_attack(home, AttackAbout(attack, questions, arguments or {}), rows)


def attacked(folder, robust=0.6, of_base=0.9, **attacks):
    """Files as `unlearn attack` leaves them: attack -> level -> accuracy on the forgotten."""
    for name, accuracies in {"none": {"0": PLAIN}, **attacks}.items():
        scores = {level: asked(x, robust=robust) + asked(of_base, "base") for level, x in accuracies.items()}
        leave(folder, name, scores)


@pytest.fixture
def grid(tmp_path):
    """Three seeds without RNA and with two nu. Rounding brings 10 points back; relearning 20, and 40 with RNA."""
    for seed in range(3):
        for nu in (0.0, 0.1, 0.3):
            folder = made_up_run(tmp_path / f"{nu}-{seed}", nu=nu, seed=seed)
            more = 0.01 * seed
            taught = {"5": PLAIN + 0.05, "50": PLAIN + (0.4 if nu else 0.2) + more}
            attacked(folder, rounding={"4": PLAIN + 0.1 + more * (1 + nu), "8": PLAIN}, relearning=taught)
    return gather(collect([tmp_path]))


def test_rows_tell_what_came_back(grid):
    rows = attack_rows(grid)
    assert len(rows) == 9 * 4
    row = rows[(rows["nu"] == 0) & (rows["seed"] == 0) & (rows["level"] == "4 bits")].iloc[0]
    assert row["attack"] == "rounding"
    assert (row["known"], row["recovered"], row["without"]) == pytest.approx((38, 10, 28))
    assert (row["base"], row["robust"]) == pytest.approx((90, 60))
    best = strongest(rows)
    assert len(best) == 9
    assert set(best["level"]) == {"50 bits"}


def test_the_strongest_is_chosen_on_one_half_of_the_items_and_judged_on_the_other(tmp_path):
    """Of two rates one is best on each half by chance: neither brings that much back on the other half."""
    folder = made_up_run(tmp_path / "run")

    def halves(*known):
        parts = [Score("unlearned", "forget", f"half {h}", HALVES, "default", "acc", x) for h, x in enumerate(known)]
        return asked(sum(known) / 2) + parts

    leave(folder, "none", {"0": halves(0.2, 0.3)})
    leave(folder, "relearning", {"5": halves(0.8, 0.4)}, arguments={"lr": 1e-4})
    leave(folder, "relearning", {"5": halves(0.6, 0.5)}, arguments={"lr": 1e-3}, suffix="1")
    rows = attack_rows(gather(collect([tmp_path])))
    [best] = strongest(rows).itertuples()
    assert max(rows["recovered"]) == pytest.approx(35)
    assert best.recovered == pytest.approx((10 + 40) / 2)
    assert (best.known, best.attack) == (pytest.approx(50), "relearning, lr=0.0001")
    drawn = levels(gather(collect([tmp_path]))).data
    assert dict(zip(drawn["attack"], drawn["known"], strict=True)) == pytest.approx(
        {"relearning, lr=0.0001": 60, "relearning, lr=0.001": 55}
    )


def test_a_probe_of_a_model_that_never_knew_is_in_the_figure(tmp_path):
    """The probe names some of a run's tasks only."""
    folder = made_up_run(tmp_path / "run")
    leave(folder, "none", {"0": asked(PLAIN)})
    part = [s for model, x in (("unlearned", 0.7), ("retrained", 0.3)) for s in asked(x, model)[:1]]
    leave(folder, "probe", {"2": part})
    drawn = levels(gather(collect([tmp_path])))
    assert dict(drawn.data[["known", "retrained"]].to_numpy()) == pytest.approx({70: 30})


def test_variants_of_an_attack_are_told_apart(grid, tmp_path):
    """Relearning on retained texts brings nothing back, and does not stand for relearning on forgotten ones."""
    for folder in tmp_path.glob("*/attacks/relearning-0"):
        about, rows = read_attack(folder)
        write_attack(folder, replace(about, arguments={"levels": [5, 50], "lr": 1e-4, "texts": "forget"}), rows)
        retain = {"levels": [50], "lr": 1e-4, "texts": "retain"}
        leave(folder.parent.parent, "relearning", {"50": asked(PLAIN)}, arguments=retain, suffix="1")
    rows = attack_rows(gather(collect([tmp_path])))
    assert set(rows["attack"]) == {"rounding", "relearning, texts=forget", "relearning, texts=retain"}
    by = rows[rows["level"] == "50 bits"].groupby(["attack", "nu"])["recovered"].mean()
    assert by["relearning, texts=forget", 0.0] == pytest.approx(21)
    assert by["relearning, texts=retain", 0.0] == pytest.approx(0)


def test_questions_that_most_runs_were_asked_stand_for_an_attack(grid, tmp_path):
    for name, level, accuracy in (("none", "0", PLAIN), ("rounding", "4", 0.9)):  # the suffix is sorted first
        leave(tmp_path / "0.0-0", name, {level: asked(accuracy)}, questions="others", suffix="!")
    rows = attack_rows(gather(collect([tmp_path])))
    row = rows[(rows["nu"] == 0) & (rows["seed"] == 0) & (rows["level"] == "4 bits")]
    assert list(row["recovered"]) == pytest.approx([10])


def test_an_evaluation_that_the_run_itself_did_not_have_is_shown(tmp_path):
    """`launch.py eval=none`, then `unlearn attack RUN eval=quick`."""
    folder = made_up_run(tmp_path / "run", changes={"identity.eval.tasks": {}, "config.eval.tasks": {}})
    attacked(folder, rounding={"4": PLAIN + 0.1})
    [recovered] = attack_rows(gather(collect([tmp_path])))["recovered"]
    assert recovered == pytest.approx(10)


def test_each_method_has_its_own_base_model(tmp_path):
    """What relearning does to the base model depends on which matrices it trains."""
    for method, of_base in (("rmu", 0.9), ("rsv", 0.7)):
        folder = made_up_run(tmp_path / method, method=method)
        attacked(folder, of_base=of_base, relearning={"10": 0.4, "50": 0.6})
    spec = levels(gather(collect([tmp_path]))).chart(SCREEN).to_dict()
    [panel] = spec["vconcat"] if "vconcat" in spec else spec["concat"]
    lines = [x for x in panel["layer"] if x["encoding"]["y"]["field"] == "base"]
    assert lines
    for line in lines:
        rows = spec["datasets"][line.get("data", panel.get("data"))["name"]]
        assert {(row["method"], round(row["base"])) for row in rows} == {("RMU", 90), ("RSV", 70)}
        assert "method" in [detail["field"] for detail in line["encoding"]["detail"]]


def test_claims_on_texts_compare_all_runs_of_a_method_at_equal_forgetting(tmp_path):
    """Without RNA three c forget 7, 8 and 9 nats, of which 1 comes back; with it 7.5, of which 3 come back."""
    for seed in range(3):
        for c, nu, forgotten, back in (
            (3.0, 0.0, 7, 1),
            (6.5, 0.0, 8, 1),
            (10.0, 0.0, 9, 1),
            (6.5, 0.1, 7.5, 3 + seed / 10),
        ):
            folder = made_up_run(tmp_path / f"{c}-{nu}-{seed}", argument={"c": c}, nu=nu, seed=seed)
            leave(folder, "none", {"0": nats(forgotten)})
            leave(folder, "rounding", {"4": nats(forgotten - back)})
    [line] = [x for x in document(Evidence(gather(collect([tmp_path]))), "x").splitlines() if "undo: rounding" in x]
    assert "**contrary** +2.10" in line


def test_what_comes_back_is_compared_over_the_attacks_and_levels_of_both_sides(tmp_path):
    """With RNA: a level more of one attack, and another one of the other, which bring back more. A run has less."""
    for seed in range(2):
        for nu, more, layer in ((0.0, {}, "1"), (0.1, {"50": 0.9}, "2")):
            taught = {"5": PLAIN + 0.1 + seed / 100, **more}
            folder = made_up_run(tmp_path / f"{nu}-{seed}", nu=nu, seed=seed)
            attacked(folder, relearning=taught, probe={layer: 0.9 + nu})
    attacked(made_up_run(tmp_path / "further", nu=0.3), rounding={"4": PLAIN})
    material = gather(collect([tmp_path]))
    assert dict(figure(material).data[["nu", "recovered"]].to_numpy()) == pytest.approx({0.0: 10.5, 0.1: 10.5})
    evidence = Evidence(material)
    methods = by_method(evidence)
    effects = [claim.effect(methods["RMU"]) for claim in claims(methods)]
    assert [e.difference for e in effects if not e.why_not] == pytest.approx([0, 0])
    assert [e.why_not for e in effects if e.why_not] == [DISJOINT]


def test_some_of_a_runs_own_tasks_are_no_other_questions(grid, tmp_path):
    """As the probe's: of small tasks no question may be left to be measured."""
    part = ROLES["forget"][:1]
    assert part != ROLES["forget"]
    for folder in tmp_path.glob("*/attacks/none-0"):
        leave(folder.parent.parent, "probe", {"1": [score for score in asked(0.95) if score.task in part]})
    assert set(figure(gather(collect([tmp_path]))).data["strongest"]) == {"probe, 1 bits (3 of 3)"}


def test_the_figures_are_drawn_from_these_rows(grid):
    plane = figure(grid)
    by_nu = plane.data.set_index("nu")
    assert by_nu.loc[0.0, "recovered"] == pytest.approx(21)
    assert by_nu.loc[0.3, "recovered"] == pytest.approx(41)
    assert by_nu.loc[0.0, "recovered_low"] < 21 < by_nu.loc[0.0, "recovered_high"]
    assert by_nu.loc[0.0, "strongest"] == "relearning, 50 bits (3 of 3)"
    course = levels(grid)
    assert len(course.data) == 3 * 4
    for drawn in (plane, course):
        assert "diamond" in json.dumps(drawn.chart(SCREEN).to_dict())  # RNA shows, also where there is no line


def test_no_bar_of_accuracies_goes_beyond_100_percent(tmp_path):
    """Two seeds, 20 and 90 %: Student's interval is 445 points to either side."""
    for seed, robust in enumerate((0.2, 0.9)):
        attacked(made_up_run(tmp_path / str(seed), seed=seed), robust, rounding={"4": 0.4})
    drawn = figure(gather(collect([tmp_path])))
    assert drawn.data["robust_high"].item() > 400
    [plane] = drawn.chart(SCREEN).to_dict()["concat"]
    rules = [layer for layer in plane["layer"] if layer["mark"]["type"] == "rule"]
    assert {tuple(rule["encoding"]["x"]["scale"]["domain"]) for rule in rules} == {(0, 100)}
    assert all(rule["mark"]["clip"] for rule in rules)


def test_without_attacks_there_are_no_figures(tmp_path):
    made_up_run(tmp_path / "run")
    material = gather(collect([tmp_path]))
    assert figure(material) is None
    assert levels(material) is None
    assert "Under attack" not in document(Evidence(gather(collect([made_up_pair(tmp_path)]))), "x")


def test_levels_are_shown_in_points_and_in_nats(tmp_path):
    folder = made_up_run(tmp_path / "run")
    leave(folder, "none", {"0": asked(PLAIN) + nats(7)})
    leave(folder, "rounding", {"4": asked(0.5) + nats(7)})
    drawn = levels(gather(collect([tmp_path])))
    assert dict(drawn.data[["unit", "known"]].to_numpy()) == {"points": 50, "nats": -7}
    assert [panel["title"] for panel in drawn.chart(SCREEN).to_dict()["concat"]] == ["rounding", "rounding"]


def made_up_pair(root):
    for seed in range(2):
        for nu in (0.0, 0.1):
            made_up_run(root / "pair" / f"{nu}-{seed}", nu=nu, seed=seed)
    return root / "pair"


def test_claims_say_where_rna_makes_it_easier(grid):
    page = document(Evidence(grid), "x")
    lines = {line.split("undo: ")[1].split(".")[0]: line for line in page.splitlines() if "easier to undo" in line}
    assert set(lines) == {"relearning", "rounding", "the strongest of them"}
    assert "**seen**" in lines["rounding"]
    assert "**contrary** +20.0" in lines["relearning"]
    assert "**contrary** +20.0" in lines["the strongest of them"]


def test_claims_in_points_are_of_the_best_nu(grid):
    """Where a nu has left nothing forgotten, nothing can come back."""
    evidence = Evidence(grid)
    [subject] = evidence.subjects
    [rows] = by_method(evidence).values()
    assert len(subject.compared) == 2
    for seed, of in rows.groupby("seed"):
        assert set(of["nu"]) == {0.0, subject.best_nu[seed]}


def test_a_broken_file_is_named_and_the_rest_is_shown(grid, tmp_path):
    (tmp_path / "0.0-0" / "attacks" / "rounding-0" / "scores.parquet").write_text("{")
    rows = attack_rows(grid)
    assert len(rows) == 8 * 4
    assert any("0.0-0" in run for run in grid.problems)
