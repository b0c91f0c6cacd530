"""The report: what it finds, what it computes, what it says of what is missing, and what it writes."""

import io
import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import vl_convert
from pypdf import PdfReader
from scipy import stats

from tests.analysis.made_up import made_up_grid, made_up_run
from tests.conftest import ROOT
from unlearn.analysis.collect import collect
from unlearn.analysis.report.charts import PAPER, SCREEN
from unlearn.analysis.report.curves import against, figure_3
from unlearn.analysis.report.figures import figures, pareto
from unlearn.analysis.report.frames import missing_seeds, without
from unlearn.analysis.report.material import gather
from unlearn.analysis.report.page import page
from unlearn.analysis.report.tables import tables
from unlearn.cli.main import main
from unlearn.errors import UserError
from unlearn.paper.claims.evidence import Evidence
from unlearn.sweeps.sweep import Job, Sweep


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return made_up_grid(tmp_path_factory.mktemp("grid") / "runs")


@pytest.fixture(scope="module")
def material(grid):
    return gather(collect([grid]))


def table(name, m):
    return next(found for found in tables(m) if found.name == name).data


# Which runs are found


def test_a_folder_of_runs_is_searched_and_each_run_is_listed_once(grid):
    runs = collect([grid, grid / "rmu-0-0", grid.parent])
    assert len(runs) == 35
    assert sum(run.done for run in runs) == 34


def test_no_run_is_an_error_that_says_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"no run is here \(no run.json\)"):
        collect([tmp_path])
    with pytest.raises(UserError, match="no such folder"):
        collect([tmp_path / "nowhere"])


def test_corrupt_and_unfinished_runs_are_listed_and_not_used(tmp_path):
    made_up_run(tmp_path / "good")
    made_up_run(tmp_path / "torn")
    (tmp_path / "torn/metrics.json").write_text('{"unlearned/mmlu/def')
    made_up_run(tmp_path / "empty")
    (tmp_path / "empty/run.json").write_text("[]")
    made_up_run(tmp_path / "half", status="running")
    made_up_run(tmp_path / "bare")
    (tmp_path / "bare/run.json").write_text('{"status": "done"}')
    m = gather(collect([tmp_path]))
    found = table("unusable", m).set_index("run")
    assert dict(found["status"]) == {"torn": "corrupt", "empty": "corrupt", "half": "unfinished", "bare": "corrupt"}
    assert "metrics.json" in found.loc["torn", "why"]
    assert "missing or of a wrong type: identity.model.name" in found.loc["bare", "why"]
    assert set(m.accuracies["run"]) == {"good"}


def test_a_sweeps_jobs_that_never_began_or_could_not_be_composed_are_listed(tmp_path):
    run = made_up_run(tmp_path / "outputs/runs/a")
    sweep = Sweep(tmp_path / "outputs/sweeps/2026-01-01/12-00-00")
    hydra = str(sweep.folder / "1")
    sweep.jobs = {
        0: Job(0, ["rna.nu=0"], str(sweep.folder / "0"), str(run)),
        1: Job(1, ["rna.nu=0.1"], hydra, str(tmp_path / "outputs/runs/b")),
        2: Job(2, ["rna.nu=-1"], error="rna.nu must be at least 0"),
    }
    sweep.write()
    runs = collect([sweep.folder])
    assert [run.status for run in sorted(runs, key=lambda run: run.status)] == ["done", "failed", "missing"]
    assert {"rna.nu=-1: rna.nu must be at least 0"} <= {run.why for run in runs}
    (tmp_path / "outputs").rename(tmp_path / "elsewhere")  # copied to another machine
    moved = collect([tmp_path / "elsewhere/sweeps/2026-01-01/12-00-00"])
    assert sum(run.done for run in moved) == 1


def test_mixed_models_code_and_questions_are_warned_of(tmp_path):
    made_up_run(tmp_path / "a")
    assert gather(collect([tmp_path])).warnings == []
    made_up_run(tmp_path / "b", changes={"identity.model.name": "other", "code.commit": "e" * 40, "code.changed": True})
    made_up_run(tmp_path / "c", changes={"identity.eval.limit": 5})
    told = " ".join(gather(collect([tmp_path])).warnings)
    assert "2 models" in told
    assert "2 code versions" in told
    assert "2 question sets" in told
    assert "uncommitted changes" in told
    assert gather(collect([tmp_path])).about["other"].str.contains("model.name=").all()


def test_links_are_followed_once_and_loops_end(tmp_path):
    made_up_run(tmp_path / "disk/a")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/a").symlink_to(tmp_path / "disk/a")
    (tmp_path / "runs/again").symlink_to(tmp_path / "disk/a")
    (tmp_path / "runs/loop").symlink_to(tmp_path / "runs")
    assert [run.done for run in collect([tmp_path / "runs"])] == [True]


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("train.jsonl", '{"step": 0, "forget_loss": 1}\n{"step": 1, "forg', ""),
        ("train.jsonl", "", ""),
        ("samples/roles.json", "{", ""),
        ("samples/unlearned/mmlu/perturbed.jsonl", '{"id": 0, "correct": true}\n{"id', "line 2"),
        ("samples/unlearned/mmlu/perturbed.maxlogit.parquet", "PAR1", ""),
    ],
)
def test_a_torn_file_of_one_run_ends_nothing_and_is_told(file, content, told, tmp_path):
    for seed in (0, 1):
        made_up_run(tmp_path / f"runs/{seed}", seed=seed)
    (tmp_path / "runs/1" / file).write_text(content)
    main(["report", str(tmp_path / "runs"), "-o", str(tmp_path / "r.html")])
    m = gather(collect([tmp_path / "runs"]))
    drawn = list(figures(m))
    assert all(figure.chart is not None for figure in drawn if figure.name in ("figure_1", "training"))
    [row] = table("unusable", m).to_dict("records")
    assert (row["run"], row["status"]) == ("1", "partly unreadable")
    assert told in row["why"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("identity.rna.nu", None), ("identity.seed", None), ("inputs", None), ("identity.eval.tasks", []),
     ("identity.eval.queries", None), ("identity.method.name", 3)],
)  # fmt: skip
def test_a_record_of_wrong_types_is_corrupt(key, value, tmp_path):
    made_up_run(tmp_path / "good")
    made_up_run(tmp_path / "bad")
    record = json.loads((tmp_path / "bad/run.json").read_text())
    *parents, last = key.split(".")
    place = record
    for parent in parents:
        place = place[parent]
    place[last] = value
    (tmp_path / "bad/run.json").write_text(json.dumps(record))
    [row] = table("unusable", gather(collect([tmp_path]))).to_dict("records")
    assert row["status"] == "corrupt"
    assert key in row["why"]


def test_metrics_that_are_no_numbers(tmp_path):
    made_up_run(tmp_path / "good")
    made_up_run(tmp_path / "text", seed=1)
    metrics = json.loads((tmp_path / "text/metrics.json").read_text())
    (tmp_path / "text/metrics.json").write_text(json.dumps({**metrics, "unlearned/mmlu/default/acc": None}))
    made_up_run(tmp_path / "nan", seed=2)
    (tmp_path / "nan/metrics.json").write_text(json.dumps({**metrics, "unlearned/mmlu/default/base_low": math.nan}))
    m = gather(collect([tmp_path]))
    assert table("unusable", m)["run"].tolist() == ["text"]
    cells = overview_of(m, seed=2)["95 % (retain, default)"]
    assert cells.tolist() == [""]
    (tmp_path / "nan/metrics.json").write_text(json.dumps({**metrics, "unlearned/mmlu/default/acc": math.nan}))
    rows = gather(collect([tmp_path])).accuracies
    assert rows[(rows["run"] == "nan") & (rows["task"] == "mmlu") & (rows["query"] == "default")]["model"].tolist() == [
        "base"
    ]


def overview_of(m, **chosen):
    rows = table("overview", m)
    for column, value in chosen.items():
        rows = rows[rows[column] == value]
    return rows


def test_a_run_that_was_not_evaluated_is_told(tmp_path):
    made_up_run(tmp_path / "a")
    made_up_run(tmp_path / "b", seed=1)
    (tmp_path / "b/metrics.json").write_text('{"train/steps": 40}')
    assert table("unusable", gather(collect([tmp_path])))["status"].tolist() == ["not evaluated"]
    (tmp_path / "b/metrics.json").write_text('{"unlearned/forget_text_wiki/default/nats": 3.0}')
    assert table("unusable", gather(collect([tmp_path])))["status"].tolist() == []


def test_a_long_error_is_cut(tmp_path, capsys):
    for seed in range(12):
        made_up_run(tmp_path / f"runs/{seed}", seed=seed, status="failed", changes={"error": "x\n" * 100_000})
    main(["report", str(tmp_path / "runs"), "-o", str(tmp_path / "r.html")])
    assert (tmp_path / "r.html").stat().st_size < 4 * 2**20
    told = capsys.readouterr().err
    assert len(told) < 10_000
    assert "and 2 more" in told


# What is computed


def test_a_role_is_the_mean_of_its_tasks(tmp_path):
    right = {("wmdp_bio", "default"): [True] * 10 + [False] * 30, ("wmdp_cyber", "default"): [True] * 20 + [False] * 20}
    made_up_run(tmp_path / "a", answers=right)
    rows = gather(collect([tmp_path])).accuracies
    row = rows[(rows["role"] == "forget") & (rows["query"] == "default") & (rows["model"] == "unlearned")]
    row = row.set_index("task").loc["mean"]
    assert row["acc"] == pytest.approx(100 * (0.25 + 0.5) / 2)
    errors = [(0.25 * 0.75 / 39) ** 0.5, (0.5 * 0.5 / 39) ** 0.5]
    assert row["stderr"] == pytest.approx(100 * math.hypot(*errors) / 2)
    assert row["difference"] == pytest.approx(-62.5)
    assert row["high"] - row["low"] == pytest.approx(20 / 2**0.5)  # two independent halves of 10 points


def test_a_seed_counts_once_however_often_it_was_run(tmp_path):
    made_up_run(tmp_path / "here/a")
    shutil.copytree(tmp_path / "here", tmp_path / "copied")
    made_up_run(tmp_path / "more", queries=("default", "perturbed", "control"))
    m = gather(collect([tmp_path]))
    rows = m.unlearned[(m.unlearned["role"] == "retain") & m.unlearned["query"].isin(["default", "perturbed"])]
    assert set(rows["seeds"]) == {1}
    assert set(rows["interval"]) == {"over questions"}
    assert any("2 runs repeat a seed" in warning for warning in m.warnings)


def test_a_number_is_the_same_setting_however_it_is_written(tmp_path):
    for seed, c in ((0, 3), (1, 3.0)):
        made_up_run(tmp_path / str(seed), seed=seed, argument={"c": c})
    assert gather(collect([tmp_path])).about["setting"].nunique() == 1


@pytest.mark.parametrize(
    "change",
    [{"inputs.data": {"bio": "other"}}, {"inputs.model": "n" * 64}, {"identity.eval.tasks.retain": ["near_bio"]},
     {"identity.eval.limit": 30}],
)  # fmt: skip
def test_runs_of_other_data_weights_tasks_or_questions_are_not_averaged(change, tmp_path):
    made_up_run(tmp_path / "a")
    made_up_run(tmp_path / "b", seed=1, changes=change)
    m = gather(collect([tmp_path]))
    assert m.about["setting"].nunique() == 2
    assert set(m.unlearned["seeds"]) == {1}
    assert m.about["other"].nunique() == 2
    assert m.warnings


def test_seeds_together_are_mean_and_students_interval_and_one_seed_is_over_questions(tmp_path):
    shares = (0.5, 0.6, 0.7)
    for seed, share in enumerate(shares):
        right = {("mmlu", "default"): [True] * int(60 * share) + [False] * (60 - int(60 * share))}
        made_up_run(tmp_path / f"s{seed}", seed=seed, answers=right)
    made_up_run(tmp_path / "alone", nu=0.1)
    m = gather(collect([tmp_path]))
    rows = m.unlearned[(m.unlearned["role"] == "retain") & (m.unlearned["query"] == "default")].set_index("nu")
    half = stats.t.ppf(0.975, 2) * np.std([50, 60, 70], ddof=1) / 3**0.5
    assert rows.loc[0.0, ["mean", "low", "high"]].tolist() == pytest.approx([60, 60 - half, 60 + half], abs=1e-3)
    assert rows.loc[0.0, "interval"] == "over seeds"
    assert rows.loc[0.1, "interval"] == "over questions"
    assert rows.loc[0.1, "high"] - rows.loc[0.1, "mean"] == pytest.approx(1.96 * rows.loc[0.1, "stderr"], abs=1e-3)
    base = m.base[(m.base["role"] == "retain") & (m.base["query"] == "default")]
    assert base["interval"].tolist() == ["over questions"]


def test_a_failed_and_an_absent_seed_are_named(material):
    told = table("settings", material).set_index(["method", "ν"])["missing"]
    assert told["RMU", 0.05] == "seed 1 failed"
    assert told["RSV", 0.3] == "seed 2 not there"
    assert set(told.drop([("RMU", 0.05), ("RSV", 0.3)])) == {""}
    rows = table("overview", material)
    assert len(rows) == 35
    assert rows[rows["status"] == "failed"]["retain, default"].isna().all()


def test_a_seed_that_never_began_is_missing_in_its_setting(tmp_path):
    made_up_run(tmp_path / "a")
    waiting = made_up_run(tmp_path / "b", seed=1, status="running")
    record = json.loads((waiting / "run.json").read_text())
    del record["inputs"]["query_words"]
    (waiting / "run.json").write_text(json.dumps(record))
    assert table("settings", gather(collect([tmp_path])))["missing"].tolist() == ["seed 1 unfinished"]


def test_what_was_asked_later_is_shown_as_well(tmp_path):
    """Trained with eval=none, then `unlearn evaluate RUN`."""
    run = made_up_run(tmp_path / "a")
    record = json.loads((run / "run.json").read_text())
    later = {**record["identity"]["eval"], "query_words": record["inputs"].pop("query_words")}
    record["identity"]["eval"] |= {"tasks": {}, "queries": []}
    record["evaluations"] = [later]
    (run / "run.json").write_text(json.dumps(record))
    made_up_run(tmp_path / "b", nu=0.1)
    m = gather(collect([tmp_path]))
    assert set(m.unlearned["nu"]) == {0.0, 0.1}
    rows = table("contrasts", m).set_index(["role", "effect of"])
    assert rows.loc[("retain", "RNA, perturbed"), "questions"] == 60


def test_runs_of_two_versions_of_the_results_have_curves_of_their_own(tmp_path):
    """A warning tells of the mixture; the figure must not fail on two values at the same nu."""
    for version in (2, 3):
        for nu in (0.0, 0.1, 0.2, 0.3):
            changes = {"identity.results_version": version}
            made_up_run(tmp_path / f"{version}-{nu}", nu=nu, changes=changes)
    drawn = figure_3(gather(collect([tmp_path])))
    assert set(drawn.data["curve"]) == {"RMU", "RMU (2)"}
    drawn.chart(SCREEN)


def test_a_sweep_of_one_seed_beside_one_of_five_lacks_none(tmp_path):
    for nu in (0.1, 0.2, 0.3):
        made_up_run(tmp_path / f"one-{nu}", nu=nu)
    for seed in range(5):
        made_up_run(tmp_path / f"five-{seed}", seed=seed)
    assert set(missing_seeds(gather(collect([tmp_path])).about).values()) == {""}


def test_the_best_nu_stands_for_a_method_beside_the_same_setting_without(material):
    assert [choice.method for choice in material.chosen] == ["RMU", "Adaptive RMU", "RSV"]
    for choice in material.chosen:
        assert choice.nu == 0.1
        assert choice.of == 3
        assert without(choice.plain, "rna") == without(choice.rna, "rna")


def test_of_several_coefficients_one_stands_for_both(tmp_path):
    for c, right in ((2.0, 40), (6.5, 50)):
        for nu in (0.0, 0.1):
            retained = {("mmlu", "perturbed"): [True] * right + [False] * (60 - right)}
            made_up_run(tmp_path / f"{c}-{nu}", argument={"c": c}, nu=nu, answers=retained)
    [choice] = gather(collect([tmp_path])).chosen
    assert choice.coefficient == "c=6.5"
    assert '"c": 6.5' in choice.plain
    assert '"c": 6.5' in choice.rna


def test_a_model_is_set_beside_one_of_the_same_corpora(tmp_path):
    """Another one without RNA, of other corpora, is found first."""
    for name, nu, corpus in (("a", 0.0, "other"), ("b", 0.0, "own"), ("c", 0.1, "own")):
        for seed in (0, 1):
            made_up_run(tmp_path / f"{name}{seed}", nu=nu, seed=seed, changes={"inputs.data": {"bio": corpus}})
    m = gather(collect([tmp_path]))
    [choice], [subject] = m.chosen, Evidence(m).subjects
    for plain in (choice.plain, subject.plain):
        assert [run.folder.name for run in m.runs_of(plain).values()] == ["b0", "b1"]


def test_models_of_other_corpora_are_not_paired_and_the_reason_is_told(tmp_path):
    made_up_run(tmp_path / "plain")
    made_up_run(tmp_path / "rna", nu=0.1, changes={"inputs.data": {"bio": "other"}})
    rows = table("contrasts", gather(collect([tmp_path]))).set_index(["role", "effect of"])
    assert "trained on other texts" in rows.loc[("retain", "RNA, perturbed"), "why not"]


def test_a_rate_that_a_method_brings_with_it_is_not_told_and_one_that_was_chosen_is(tmp_path):
    made_up_run(tmp_path / "rmu", changes={"identity.train.lr": 1e-3})
    made_up_run(tmp_path / "npo", method="npo", argument={"beta": 0.1}, changes={"identity.train.lr": 1e-4})
    assert set(gather(collect([tmp_path])).about["other"]) == {""}
    made_up_run(tmp_path / "other", method="npo", argument={"beta": 0.1}, changes={"identity.train.lr": 5e-4})
    told = gather(collect([tmp_path])).about.set_index("run")["other"]
    assert (told["npo"], told["other"]) == ("train.lr=0.0001", "train.lr=0.0005")


def test_seeds_that_are_one_run_are_told(tmp_path):
    """A method that draws nothing, without RNA and data.shuffle."""
    for name, same in (("npo", True), ("rmu", False)):
        for seed in range(3):
            file = made_up_run(tmp_path / f"{name}{seed}", method=name, seed=seed) / "metrics.json"
            loss = 0.5 if same else 0.5 + seed
            file.write_text(json.dumps({**json.loads(file.read_text()), "train/forget_loss": loss}))
    [told] = [w for w in gather(collect([tmp_path])).warnings if "data.shuffle" in w]
    assert told.startswith("1 settings have the same losses with several seeds")


def test_an_argument_that_is_no_number_tells_settings_apart(tmp_path):
    for norm in ("sample", "first_batch"):
        made_up_run(tmp_path / norm, argument={"c": 6.5, "norm": norm})
    about = gather(collect([tmp_path])).about
    assert set(about["other"]) == {"method.norm=sample", "method.norm=first_batch"}
    assert set(about["coefficient"]) == {"c=6.5"}


def test_without_noise_its_scale_makes_no_difference(tmp_path):
    made_up_run(tmp_path / "plain")
    made_up_run(tmp_path / "rna", nu=0.1, changes={"identity.rna.scale": "variance"})
    made_up_run(tmp_path / "again", seed=1, changes={"identity.rna.scale": "variance"})
    m = gather(collect([tmp_path]))
    [choice] = m.chosen
    assert choice.rna is not None
    assert list(m.runs_of(choice.plain)) == [0, 1]


def test_a_setting_without_forget_tasks_does_not_win_for_that(tmp_path):
    made_up_run(tmp_path / "plain")
    made_up_run(tmp_path / "good", nu=0.1)
    made_up_run(tmp_path / "bad", nu=0.02, answers={("mmlu", "perturbed"): [True] * 48 + [False] * 12})
    metrics = json.loads((tmp_path / "bad/metrics.json").read_text())
    left = {key: value for key, value in metrics.items() if "wmdp" not in key}
    (tmp_path / "bad/metrics.json").write_text(json.dumps(left))
    [choice] = gather(collect([tmp_path])).chosen
    assert choice.nu == 0.1


def test_of_two_models_one_is_shown_and_the_caption_says_so(tmp_path):
    for seed in (0, 1):
        made_up_run(tmp_path / f"a{seed}", seed=seed)
    made_up_run(tmp_path / "b", method="rsv", changes={"identity.model.name": "other", "inputs.model": "n" * 64})
    m = gather(collect([tmp_path]))
    assert [choice.method for choice in m.chosen] == ["RMU"]
    assert "Of the 2 combinations of model" in m.choice
    front = pareto(m)
    assert set(front.data["method"]) == {"Base", "RMU"}
    assert "Of the 2 combinations of model" in front.caption
    assert len(m.base.drop_duplicates(["role", "query"])) == len(m.base)


def test_curves_join_settings_that_differ_in_nothing_but_the_key(tmp_path):
    for c in (2.0, 6.5):
        for nu in (0.0, 0.1):
            made_up_run(tmp_path / f"{c}-{nu}", argument={"c": c}, nu=nu)
    made_up_run(tmp_path / "rsv", method="rsv", argument={"c": 10.0})
    rows = against(gather(collect([tmp_path])), "method.c")
    assert set(rows["method"]) == {"RMU"}  # RSV has one c only
    assert set(rows["curve"]) == {"RMU", "RMU ν = 0.1"}
    assert rows.groupby("curve")["x"].unique().map(sorted).tolist() == [[2.0, 6.5], [2.0, 6.5]]


def test_each_curve_has_a_panel_of_its_own_name(tmp_path):
    for layer in (5, 7):
        for nu in (0.0, 0.05, 0.1):
            made_up_run(tmp_path / f"{layer}-{nu}", nu=nu, changes={"identity.model.layer": layer})
    made = {figure.name: figure for figure in figures(gather(collect([tmp_path])))}
    assert set(made["figure_3"].data["curve"]) == {"RMU model.layer=5", "RMU model.layer=7"}
    assert set(made["against_model_layer"].data["curve"]) == {"RMU", "RMU ν = 0.05", "RMU ν = 0.1"}
    drawn = made["figure_3"].chart(SCREEN).to_dict()["concat"]
    titles = [layer["title"] for panel in drawn for layer in panel["layer"] if "title" in layer]
    assert titles == [f"RMU model.layer={layer}, {role}" for role in ("retain", "forget") for layer in (5, 7)]


def test_figure_2_shows_a_method_that_has_rna_only(tmp_path):
    for c in (2.0, 6.5):
        made_up_run(tmp_path / f"rmu-{c}", argument={"c": c})
        made_up_run(tmp_path / f"rsv-{c}", method="rsv", argument={"c": c}, nu=0.1)
    [data] = [figure.data for figure in figures(gather(collect([tmp_path]))) if figure.name == "figure_2"]
    assert set(data["panel"]) == {"RMU: c", "RSV ν = 0.1: c"}


def test_a_curves_axis_names_the_values_as_they_are(tmp_path):
    """Vega rounds labels to the distance of an axis's own ticks where a format leaves it the choice."""
    for c in (2.0, 3.5, 5.5, 7.5):
        made_up_run(tmp_path / f"{c}", argument={"c": c})
    [figure] = [figure for figure in figures(gather(collect([tmp_path]))) if figure.name == "figure_2"]
    svg = vl_convert.vegalite_to_svg(figure.chart(PAPER).to_dict())
    assert {"2", "3.5", "5.5", "7.5"} <= set(re.findall(r">([\d.]+)</text>", svg))


def test_contrasts_are_paired_by_question_and_averaged_over_seeds(tmp_path):
    """Of ten questions perturbation takes 4 in seed 0 and 2 in seed 1: -30 points; means are -1, -.5 and 0."""
    for seed, lost in ((0, 4), (1, 2)):
        right = {("mmlu", "default"): [True] * 10, ("mmlu", "perturbed"): [False] * lost + [True] * (10 - lost)}
        made_up_run(tmp_path / f"s{seed}", seed=seed, answers=right)
    rows = table("contrasts", gather(collect([tmp_path]))).set_index(["role", "effect of"])
    row = rows.loc[("retain", "perturbation, without RNA")]
    means = [-1.0, -1.0, -0.5, -0.5] + [0.0] * 6
    assert row["difference"] == -30.0
    error = stats.sem(means)
    assert row["p over questions"] == pytest.approx(2 * stats.norm.sf(0.3 / error))
    assert row["95 % over questions"] == f"{-30 - 196 * error:+.1f} .. {-30 + 196 * error:+.1f}"
    assert row["p over seeds"] == pytest.approx(stats.ttest_1samp([-0.4, -0.2], 0).pvalue)
    assert (
        row["95 % over seeds"] == f"{-30 - 10 * stats.t.ppf(0.975, 1):+.1f} .. {-30 + 10 * stats.t.ppf(0.975, 1):+.1f}"
    )
    assert (row["questions"], row["seeds"]) == (10, 2)


def test_a_roles_difference_is_the_mean_of_its_tasks(tmp_path):
    """WMDP's tasks are of unequal size: 10 questions that all are lost and 90 that none is make 50 points, not 10."""
    right = {("wmdp_bio", "default"): [True] * 10, ("wmdp_bio", "perturbed"): [False] * 10}
    right |= {("wmdp_cyber", query): [True] * 90 for query in ("default", "perturbed")}
    made_up_run(tmp_path / "a", answers=right)
    rows = table("contrasts", gather(collect([tmp_path]))).set_index(["role", "effect of"])
    row = rows.loc[("forget", "perturbation, without RNA")]
    assert (row["difference"], row["questions"]) == (-50.0, 100)


def test_the_interval_of_a_role_takes_its_tasks_as_independent(tmp_path):
    right = {(task, "default"): [True] * 40 for task in ("wmdp_bio", "wmdp_cyber")}
    right |= {(task, "perturbed"): [True, False] * 20 for task in ("wmdp_bio", "wmdp_cyber")}
    made_up_run(tmp_path / "a", answers=right)
    rows = table("contrasts", gather(collect([tmp_path]))).set_index(["role", "effect of"])
    half = 196 * stats.sem([0.0, -1.0] * 20) / 2**0.5
    assert (
        rows.loc[("forget", "perturbation, without RNA"), "95 % over questions"]
        == f"{-50 - half:+.1f} .. {-50 + half:+.1f}"
    )


def test_parts_of_a_group_are_one_task_and_subsets_are_paired_on_what_both_were_asked(tmp_path):
    """As mmlu, whose answers are kept by subject."""
    for name, nu, count in (("plain", 0.0, 60), ("rna", 0.1, 20)):
        right = {("mmlu", "perturbed"): [nu > 0] * count}
        run = made_up_run(tmp_path / name, nu=nu, answers=right)
        (run / "samples/unlearned/mmlu").rename(run / "samples/unlearned/mmlu_anatomy")
        shutil.copytree(run / "samples/unlearned/near_bio", run / "samples/unlearned/mmlu_virology")
        file = run / "samples/unlearned/mmlu_virology/perturbed.jsonl"
        file.write_text("".join(json.dumps({"id": i, "correct": True}) + "\n" for i in range(80)))
        (run / "samples/roles.json").write_text(json.dumps({"retain": ["mmlu_anatomy", "mmlu_virology"]}))
    rows = table("contrasts", gather(collect([tmp_path]))).set_index(["role", "effect of"])
    row = rows.loc[("retain", "RNA, perturbed")]
    assert (row["difference"], row["questions"]) == (20.0, 100)  # 20 of 100 were won


def test_what_cannot_be_paired_is_in_the_table_with_the_reason(tmp_path):
    made_up_run(tmp_path / "plain", seed=0)
    made_up_run(tmp_path / "rna", seed=1, nu=0.1)
    rows = table("contrasts", gather(collect([tmp_path]))).set_index(["role", "effect of"])
    assert rows.loc[("retain", "RNA, perturbed"), "why not"] == "no seed of both: 0 and 1"
    shutil.rmtree(tmp_path / "plain/samples")
    rows = table("contrasts", gather(collect([tmp_path]))).set_index(["role", "effect of"])
    assert "no answers" in rows.loc[("retain", "perturbation, without RNA"), "why not"]


def test_runs_of_other_questions_are_not_paired_and_the_reason_is_told(tmp_path):
    made_up_run(tmp_path / "plain")
    made_up_run(tmp_path / "rna", nu=0.1, changes={"inputs.query_words.perturbed": "v" * 64})
    m = gather(collect([tmp_path]))
    rows = table("contrasts", m).set_index(["role", "effect of"])
    assert "words that replace options differ" in rows.loc[("retain", "RNA, perturbed"), "why not"]
    assert math.isnan(rows.loc[("retain", "RNA, perturbed"), "difference"])
    assert rows.loc[("retain", "perturbation, without RNA"), "questions"] == 60  # within a run all is well
    assert any("question sets" in warning for warning in m.warnings)


def test_table_1_is_in_the_papers_form(tmp_path):
    def answers(default, perturbed):
        return {
            (task, query): [True] * (n - less) + [False] * (100 - n + less)
            for task, less in (("near_bio", 0), ("near_cyber", 7))
            for query, n in (("default", default), ("perturbed", perturbed))
        }

    made_up_run(tmp_path / "plain", answers=answers(64, 50))
    made_up_run(tmp_path / "rna", nu=0.03, answers=answers(63, 60))
    rows = table("table_1", gather(collect([tmp_path]))).set_index(["method", "RNA", "query"])
    assert rows.loc[("RMU", "original", "perturbed"), "near_bio ↑"] == "50.0 ± 5.0"
    assert rows.loc[("RMU", "w/ RNA", "perturbed"), "near_bio ↑"] == "60.0 ± 4.9 (+10.0) *"
    assert rows.loc[("RMU", "w/ RNA", "default"), "near_bio ↑"] == "63.0 ± 4.9 (-1.0)"
    assert rows.loc[("RMU", "w/ RNA", "perturbed"), "near_cyber ↑"] == "53.0 ± 5.0 (+10.0) *"
    assert rows.loc[("Base", "original", "default"), "near_bio ↑"] == "100.0 ± 0.0"


# What is written


def test_every_figure_is_drawn_and_has_its_data(material):
    made = {figure.name: figure for figure in figures(material)}
    assert set(made) == {
        "figure_1",
        "figure_2",
        "figure_3",
        "figure_4",
        "pareto",
        "texts",
        "texts_ngrams",
        "course",
        "attacks",
        "attack_levels",
        "training",
    }
    assert made["figure_2"].chart is None  # no coefficient varies
    assert "sweep=figure_2" in made["figure_2"].caption
    for name in set(made) - {
        "figure_2",
        "texts",
        "texts_ngrams",
        "course",
        "attacks",
        "attack_levels",
    }:  # these runs have no texts, no eval.every and no attack
        assert made[name].chart is not None, made[name].caption
        assert len(made[name].data) > 0
    three = made["figure_3"].data
    value = three[(three["method"] == "RSV") & (three["x"] == 0.3) & (three["role"] == "retain")]
    assert set(value["missing"]) == {"seed 2 not there"}


def test_a_maxlogit_that_is_no_number_is_left_out(tmp_path):
    run = made_up_run(tmp_path / "a")
    file = run / "samples/unlearned/mmlu/perturbed.maxlogit.parquet"
    pd.DataFrame({"maxlogit": [*pd.read_parquet(file)["maxlogit"], math.nan]}).to_parquet(file)
    [data] = [figure.data for figure in figures(gather(collect([tmp_path]))) if figure.name == "figure_1"]
    densities = data[data["panel"] == "maxlogit"]
    assert set(densities["series"]) == {"Base", "RMU"}
    assert densities["density"].notna().all()


def test_figures_as_pdf_png_and_csv(grid, tmp_path):
    main(["report", str(grid), "--figures", str(tmp_path / "figures"), "-o", str(tmp_path / "r.html")])
    written = {file.name for file in (tmp_path / "figures").iterdir()}
    names = ("figure_1", "figure_3", "figure_4", "pareto", "training")
    assert written == {f"{name}.{kind}" for name in names for kind in ("pdf", "png", "csv")}
    for name in names:
        [sheet] = PdfReader(tmp_path / f"figures/{name}.pdf").pages
        assert 200 < float(sheet.mediabox.width) < 900
        assert (tmp_path / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "accuracy in %" in PdfReader(tmp_path / "figures/figure_3.pdf").pages[0].extract_text()
    assert not pd.read_csv(tmp_path / "figures/figure_3.csv").empty


@pytest.mark.parametrize("kind", ["md", "latex", "csv"])
def test_tables_as_text(kind, grid, capsys):
    main(["report", str(grid), "--format", kind, "--table", "table_1"])
    text = capsys.readouterr().out
    if kind == "csv":
        assert set(pd.read_csv(io.StringIO(text))["method"]) == {"Base", "RMU", "Adaptive RMU", "RSV"}
    elif kind == "md":
        assert "| Adaptive RMU" in text
    else:
        assert r"\begin{tabular}" in text
        assert r"near\_bio" in text
        assert r"$\pm$" in text


def test_every_accuracy_as_csv(grid, tmp_path):
    main(["report", str(grid), "--format", "csv", "--table", "accuracies", "-o", str(tmp_path / "a.csv")])
    rows = pd.read_csv(tmp_path / "a.csv")
    metrics = json.loads((grid / "rmu-0-0/metrics.json").read_text())
    row = rows[(rows["run"] == "rmu-0-0") & (rows["task"] == "mmlu") & (rows["query"] == "perturbed")]
    assert row[row["model"] == "unlearned"]["acc"].item() == pytest.approx(
        100 * metrics["unlearned/mmlu/perturbed/acc"], abs=1e-3
    )


def test_what_was_not_used_is_said_and_a_mistake_ends_with_one_line(grid, tmp_path, capsys):
    main(["report", str(grid), "-o", str(tmp_path / "r.html")])
    told = capsys.readouterr().err
    assert "rmu-0.05-1: failed: CUDA is out of memory" in told
    with pytest.raises(SystemExit, match=r"Error: .*no such folder"):
        main(["report", str(tmp_path / "nowhere")])


def test_cells_of_markdown_stay_cells(tmp_path, capsys):
    made_up_run(tmp_path / "a", status="failed", changes={"error": "a | b\nc"})
    main(["report", str(tmp_path), "--format", "md", "--table", "unusable"])
    [line] = [line for line in capsys.readouterr().out.splitlines() if "failed" in line]
    assert r"a \| b c" in line


def test_options_that_do_not_go_together(grid, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(grid), "--table", "table_1"])
    assert "goes with" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="published: no such table"):
        main(["report", str(grid), "--format", "md", "--table", "published"])


def test_output_that_cannot_be_written(grid, tmp_path):
    with pytest.raises(SystemExit, match="Error: "):
        main(["report", str(grid), "--format", "csv", "-o", str(tmp_path)])


def test_text_of_runs_cannot_become_markup(tmp_path):
    made_up_run(tmp_path / "a", changes={"error": "</script><img src=x onerror=alert(1)>"}, status="failed")
    made_up_run(tmp_path / "b", changes={"identity.model.name": "</script><b>x</b>"})
    made_up_run(tmp_path / "c")
    m = gather(collect([tmp_path]))
    text = page(m, tables(m), list(figures(m)), title="<i>t</i>")
    assert "<img src=x" not in text
    assert "</script><b>" not in text
    assert "<i>t</i>" not in text


def test_nothing_heavy_is_imported():
    heavy = {"torch", "transformers", "lm_eval", "wandb"}
    code = f"import sys, unlearn.analysis.report.write; print({heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout.strip() == "set()", ran.stderr
