"""The report: what it finds, what it computes, what it says of what is missing, and what it writes."""

import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import reduce

import numpy as np
import pandas as pd
import pytest
import vl_convert
from pypdf import PdfReader
from scipy import stats

from tests.analysis.made_up import add_scores, made_up_grid, made_up_run
from tests.conftest import ROOT
from unlearn.analysis.collect import collect
from unlearn.analysis.compare import compare_runs
from unlearn.analysis.report import write
from unlearn.analysis.report.charts import PAPER, SCREEN
from unlearn.analysis.report.curves import against, figure_3
from unlearn.analysis.report.export import as_text, write_table, write_text
from unlearn.analysis.report.figures import figures
from unlearn.analysis.report.material import gather
from unlearn.analysis.report.page import page
from unlearn.analysis.report.tables import TABLES
from unlearn.analysis.report.trade_off import figure as trade_off
from unlearn.analysis.settings import missing_seeds
from unlearn.cli.main import main
from unlearn.errors import UserError
from unlearn.records.samples import read_samples, write_samples
from unlearn.records.scores import Score, read_scores, write_scores
from unlearn.screen import accept_every_letter
from unlearn.statistics.intervals import two_way
from unlearn.sweeps.sweep import Job, Sweep


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return made_up_grid(tmp_path_factory.mktemp("grid") / "runs")


@pytest.fixture(scope="module")
def material(grid):
    return gather(collect([grid]))


def table(name, m):
    made = TABLES[name](m)
    return pd.DataFrame() if made is None else made.data


def accuracies(m, **place):
    """Rows of accuracies of the unlearned model over seeds, in percent."""
    rows = m.means[(m.means["measure"] == "acc") & (m.means["against"] == "") & (m.means["model"] == "unlearned")]
    for column, value in place.items():
        rows = rows[rows[column] == value]
    return rows


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
    (tmp_path / "torn/scores.parquet").write_text("PAR1")
    made_up_run(tmp_path / "empty")
    (tmp_path / "empty/run.json").write_text("[]")
    made_up_run(tmp_path / "half", status="running")
    made_up_run(tmp_path / "bare")
    (tmp_path / "bare/run.json").write_text('{"status": "done"}')
    for name, content in {"null": '{"config": null, "identity": null}', "deep": "[" * 200_000}.items():
        (made_up_run(tmp_path / name) / "run.json").write_text(content)
    made_up_run(tmp_path / "older", changes={"identity.results_version": 2})
    m = gather(collect([tmp_path]))
    unusable = table("unusable", m).set_index("run")
    corrupt = dict.fromkeys(("torn", "empty", "bare", "null", "deep", "older"), "corrupt")
    assert dict(unusable["status"]) == {**corrupt, "half": "unfinished"}
    assert "scores.parquet" in unusable.loc["torn", "why"]
    assert "run.json: identity.model: Field required (and 5 more)" in unusable.loc["bare", "why"]
    assert "version 2" in unusable.loc["older", "why"]
    assert set(m.about["run"][m.scores["number"].unique()]) == {"good"}


def test_a_sweeps_jobs_that_never_began_or_could_not_be_composed_are_listed(tmp_path):
    run = made_up_run(tmp_path / "outputs/runs/a")
    sweep = Sweep(tmp_path / "outputs/sweeps/2026-01-01/12-00-00")
    sweep.jobs = {
        0: Job(0, ["rna.nu=0"], "0", str(run)),
        1: Job(1, ["rna.nu=0.1"], "1", str(tmp_path / "outputs/runs/b")),
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


def test_keys_that_follow_from_others_are_not_shown(tmp_path):
    """Two models that differ in layer, steps and rate, and a failed run that differs in more: the name tells them."""
    for name, layer in (("small", 7), ("large", 14)):
        keys = {"identity.model": {"name": name, "layer": layer}, "identity.train": {"steps": layer, "lr": layer / 1e4}}
        made_up_run(tmp_path / name, changes=keys)
        keys["identity.train"] |= {"lr": 1.0, "clip": 2.0}
    made_up_run(tmp_path / "failed", status="failed", changes=keys)
    shown = table("settings", gather(collect([tmp_path])))
    assert "model.name" in shown
    assert not {"model.layer", "train.steps", "train.lr", "train.clip"} & set(shown)


def test_links_are_followed_once_and_not_out_of_the_folder_and_loops_end(tmp_path):
    made_up_run(tmp_path / "disk/a")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/a").symlink_to(tmp_path / "disk/a")
    (tmp_path / "runs/again").symlink_to(tmp_path / "disk/a")
    (tmp_path / "runs/loop").symlink_to(tmp_path / "runs")
    assert [run.done for run in collect([tmp_path])] == [True]
    (tmp_path / "all").symlink_to(tmp_path / "disk")  # chosen on the command line
    assert [run.done for run in collect([tmp_path / "all"])] == [True]
    assert [run.done for run in collect([tmp_path / "runs", tmp_path / "disk"])] == [True]
    [told] = collect([tmp_path / "runs"])
    assert told.why == f"a link that leads out of {tmp_path / 'runs'} is not followed: name {tmp_path / 'disk/a'}"


def test_torn_files_of_some_runs_end_nothing_and_are_told(tmp_path):
    torn = {"1": ("train.jsonl", '{"step": 0, "forget_loss": 1}\n{"step": 1, "forg'), "2": ("train.jsonl", "")}
    torn["3"] = "samples.parquet", "PAR1"
    for seed in range(4):
        made_up_run(tmp_path / f"runs/{seed}", seed=seed)
    for name, (file, content) in torn.items():
        (tmp_path / "runs" / name / file).write_text(content)
    main(["report", str(tmp_path / "runs"), "-o", str(tmp_path / "r.html")])
    m = gather(collect([tmp_path / "runs"]))
    assert {"figure_1", "training"} <= {figure.name for figure in figures(m)}
    unusable = table("unusable", m).set_index("run")
    assert dict(unusable["status"]) == dict.fromkeys(torn, "partly unreadable")
    assert "samples.parquet" in unusable.loc["3", "why"]


def test_a_record_of_wrong_types_is_corrupt(tmp_path):
    wrong = {"identity.rna.nu": None, "identity.seed": None, "inputs": None, "identity.eval.tasks": []}
    wrong |= {"identity.eval.queries": None, "identity.method.name": 3}
    for key, value in wrong.items():
        record = made_up_run(tmp_path / key, scores=[]) / "run.json"
        content = json.loads(record.read_text())
        *parents, last = key.split(".")
        reduce(dict.__getitem__, parents, content)[last] = value
        record.write_text(json.dumps(content))
    rows = table("unusable", gather(collect([tmp_path]))).set_index("run")
    assert dict(rows["status"]) == dict.fromkeys(wrong, "corrupt")
    assert all(key in rows.loc[key, "why"] for key in wrong)


def test_scores_that_are_no_numbers(tmp_path):
    made_up_run(tmp_path / "good")
    folder = made_up_run(tmp_path / "nan", seed=1)
    add_scores(folder, [replace(score, value=math.nan) for score in read_scores(folder)[:1]])
    assert table("unusable", gather(collect([tmp_path])))["run"].tolist() == ["nan"]


def test_answers_that_are_not_finite_are_counted_wherever_the_figure_would_be(tmp_path, capsys):
    made_up_run(tmp_path / "good")
    folder = made_up_run(tmp_path / "broken", seed=1)
    place = {"model": "unlearned", "role": "forget", "task": "wmdp_bio", "query": "default"}
    kept = [s for s in read_scores(folder) if any(getattr(s, key) != value for key, value in place.items())]
    count = Score(**place, part_of=None, measure="not_finite", value=7.0, n=60)
    write_scores(folder, [*kept, count])
    m = gather(collect([tmp_path]))
    assert any("1 of 2 runs have answers that are not finite" in warning for warning in m.warnings)
    runs = table("runs", m).set_index("run")
    assert runs.loc["broken", "not finite"] == "forget: 7 of 60"
    assert pd.isna(runs.loc["broken", "forget"])
    assert not pd.isna(runs.loc["good", "forget"])
    assert not pd.isna(runs.loc["broken", "retain"])
    settings = table("settings", m)
    assert settings["not finite"].dropna().tolist() == ["forget: 7 of 60"]
    assert "not finite" not in settings["forget"].tolist()
    [row] = table("unusable", m).to_dict("records")
    assert (row["run"], row["status"]) == ("broken", "partly not finite")
    assert "unlearned model, wmdp_bio, default: 7 of 60 not finite" in row["why"]
    main(["report", str(tmp_path), "--format", "md"])
    assert "forget: 7 of 60" in capsys.readouterr().out


def test_what_is_not_finite_in_one_run_is_not_compared(tmp_path, capsys):
    a, b = made_up_run(tmp_path / "a"), made_up_run(tmp_path / "b", seed=1)
    samples = read_samples(b)
    broken = [
        replace(s, correct=None, loglikelihoods=[math.nan, math.nan])
        if (s.model, s.task, s.query) == ("unlearned", "wmdp_bio", "default") and s.id < 3
        else s
        for s in samples
    ]
    write_samples(b, broken)
    comparison = compare_runs(a, b)
    assert ("wmdp_bio", "default") not in comparison.tasks
    assert ("forget", "default") not in comparison.roles
    assert ("wmdp_cyber", "default") in comparison.tasks
    assert comparison.refused == {("forget", "default"): f"3 answers of {b} are not finite"}
    main(["compare", str(a), str(b)])
    assert "default queries of forget are not compared: 3 answers of" in capsys.readouterr().err


def test_a_run_that_was_not_evaluated_is_told(tmp_path):
    made_up_run(tmp_path / "a")
    made_up_run(tmp_path / "b", seed=1, scores=[])
    assert table("unusable", gather(collect([tmp_path])))["status"].tolist() == ["not evaluated"]
    write_scores(tmp_path / "b", [Score("unlearned", "forget_text", "wiki", None, "default", "nats", 3.0)])
    assert table("unusable", gather(collect([tmp_path]))).empty


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
    rows = gather(collect([tmp_path])).scores
    rows = rows[(rows["role"] == "forget") & (rows["query"] == "default") & (rows["model"] == "unlearned")]
    rows = rows[rows["task"] == "mean"].set_index("against")
    assert rows.loc["", "value"] == pytest.approx((0.25 + 0.5) / 2)
    errors = [(0.25 * 0.75 / 39) ** 0.5, (0.5 * 0.5 / 39) ** 0.5]
    assert rows.loc["", "stderr"] == pytest.approx(math.hypot(*errors) / 2)
    assert rows.loc["base", "value"] == pytest.approx(-0.625)
    assert rows.loc["base", "high"] - rows.loc["base", "low"] == pytest.approx(0.2 / 2**0.5)  # two independent halves


def test_a_role_of_which_a_task_lacks_a_measure_has_no_mean(tmp_path):
    folder = made_up_run(tmp_path / "a")
    write_scores(
        folder, [score for score in read_scores(folder) if score.task != "wmdp_bio" or score.query == "default"]
    )
    rows = accuracies(gather(collect([tmp_path])), role="forget", task="mean")
    assert set(rows["query"]) == {"default"}


def test_a_seed_counts_once_however_often_it_was_run(tmp_path):
    made_up_run(tmp_path / "here/a")
    shutil.copytree(tmp_path / "here", tmp_path / "copied")
    made_up_run(tmp_path / "more", queries=("default", "perturbed", "control"))
    m = gather(collect([tmp_path]))
    rows = accuracies(m, role="retain")
    rows = rows[rows["query"].isin(["default", "perturbed"])]
    assert set(rows["seeds"]) == {1}
    assert set(rows["interval"]) == {"over questions"}
    assert any("2 runs repeat a seed" in warning for warning in m.warnings)


def test_a_number_is_the_same_setting_however_it_is_written(tmp_path):
    for seed, c in ((0, 3), (1, 3.0)):
        made_up_run(tmp_path / str(seed), seed=seed, argument={"c": c})
    assert gather(collect([tmp_path])).about["setting"].nunique() == 1


def test_runs_of_other_data_weights_tasks_or_questions_are_not_averaged(tmp_path):
    changes = [{}, {"inputs.data": {"bio": "other"}}, {"inputs.model": "n" * 64}]
    changes += [{"identity.eval.tasks.retain": ["near_bio"]}, {"identity.eval.limit": 30}]
    for seed, change in enumerate(changes):
        made_up_run(tmp_path / str(seed), seed=seed, changes=change)
    m = gather(collect([tmp_path]))
    assert m.about["setting"].nunique() == m.about["other"].nunique() == len(changes)
    assert set(accuracies(m)["seeds"]) == {1}
    assert m.warnings


def test_seeds_together_are_mean_and_students_interval_and_one_seed_is_over_questions(tmp_path):
    shares = (0.5, 0.6, 0.7)
    for seed, share in enumerate(shares):
        right = {("mmlu", "default"): [True] * int(60 * share) + [False] * (60 - int(60 * share))}
        made_up_run(tmp_path / f"s{seed}", seed=seed, answers=right)
    made_up_run(tmp_path / "alone", nu=0.1)
    m = gather(collect([tmp_path]))
    rows = accuracies(m, role="retain", query="default", task="mean").set_index("nu")
    half = stats.t.ppf(0.975, 2) * np.std([50, 60, 70], ddof=1) / 3**0.5
    assert rows.loc[0.0, ["mean", "low", "high"]].tolist() == pytest.approx([60, 60 - half, 60 + half], abs=1e-3)
    assert rows.loc[0.0, "interval"] == "over seeds"
    assert rows.loc[0.1, "interval"] == "over questions"
    assert rows.loc[0.1, "high"] - rows.loc[0.1, "mean"] == pytest.approx(1.96 * rows.loc[0.1, "stderr"], abs=1e-3)
    base = m.means_of("acc", model="base")
    base = base[(base["role"] == "retain") & (base["query"] == "default")]
    assert base["interval"].tolist() == ["over questions"]


def test_a_failed_and_an_absent_seed_are_named(material):
    missing = table("settings", material).set_index(["method", "ν"])["missing"].dropna()
    assert dict(missing) == {("RMU", 0.05): "seed 1 failed", ("RSV", 0.3): "seed 2 not there"}
    rows = table("runs", material)
    assert len(rows) == 35
    assert rows[rows["status"] == "failed"]["retain"].isna().all()


def test_a_seed_that_never_began_is_missing_in_its_setting(tmp_path):
    made_up_run(tmp_path / "a")
    waiting = made_up_run(tmp_path / "b", seed=1, status="running")
    record = json.loads((waiting / "run.json").read_text())
    del record["inputs"]["questions"]
    (waiting / "run.json").write_text(json.dumps(record))
    assert table("settings", gather(collect([tmp_path])))["missing"].dropna().tolist() == ["seed 1 unfinished"]


def test_what_was_asked_later_is_shown_as_well(tmp_path):
    """Trained with eval=none, then `unlearn evaluate RUN`."""
    run = made_up_run(tmp_path / "a")
    record = json.loads((run / "run.json").read_text())
    later = {"config": dict(record["config"]["eval"]), "questions": record["inputs"].pop("questions"), "time": 1.0}
    for place in ("identity", "config"):
        record[place]["eval"] |= {"tasks": {}, "queries": []}
    (run / "run.json").write_text(json.dumps(record))
    home = run / "evaluations/toy-0"
    home.mkdir(parents=True)
    (home / "evaluation.json").write_text(json.dumps(later))
    for name in ("scores.parquet", "samples.parquet"):
        shutil.move(run / name, home / name)
    write_scores(run, [])
    made_up_run(tmp_path / "b", nu=0.1)
    m = gather(collect([tmp_path]))
    assert set(accuracies(m)["nu"]) == {0.0, 0.1}
    rows = table("contrasts", m).set_index(["role", "effect of"])
    assert rows.loc[("retain", "RNA, perturbed"), "seeds"] == 1


def test_runs_that_differ_in_what_no_name_tells_have_curves_of_their_own(tmp_path):
    """Trained on other corpora: the figure must not fail on two values at the same nu."""
    for corpora in ("d", "e"):
        for nu in (0.0, 0.1, 0.2, 0.3):
            made_up_run(tmp_path / f"{corpora}-{nu}", nu=nu, changes={"inputs.data": {"bio": corpora}})
    drawn = figure_3(gather(collect([tmp_path])))
    assert drawn.data["curve"].nunique() == 2
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
        assert choice.plain.without("rna") == choice.rna.without("rna")


def test_of_several_coefficients_one_stands_for_both(tmp_path):
    for c, right in ((2.0, 40), (6.5, 50)):
        for nu in (0.0, 0.1):
            retained = {("mmlu", "perturbed"): [True] * right + [False] * (60 - right)}
            made_up_run(tmp_path / f"{c}-{nu}", argument={"c": c}, nu=nu, answers=retained)
    [choice] = gather(collect([tmp_path])).chosen
    assert choice.coefficient == "c=6.5"
    assert choice.plain.get("method.c") == choice.rna.get("method.c") == 6.5


def test_a_model_is_set_beside_one_of_the_same_corpora(tmp_path):
    """Another one without RNA, of other corpora, is found first."""
    for name, nu, corpus in (("a", 0.0, "other"), ("b", 0.0, "own"), ("c", 0.1, "own")):
        for seed in (0, 1):
            made_up_run(tmp_path / f"{name}{seed}", nu=nu, seed=seed, changes={"inputs.data": {"bio": corpus}})
    m = gather(collect([tmp_path]))
    [choice] = m.chosen
    assert [run.folder.name for run in m.runs_of(choice.plain).values()] == ["b0", "b1"]


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
            changes = {"trained": {"forget_loss": 0.5 if same else 0.5 + seed}}
            made_up_run(tmp_path / f"{name}{seed}", method=name, seed=seed, changes=changes)
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


def test_a_placebo_is_no_rna(tmp_path):
    made_up_run(tmp_path / "plain", changes={"identity.rna.where": "gradient"})
    made_up_run(tmp_path / "rna", nu=0.02)
    made_up_run(tmp_path / "placebo", nu=0.1, changes={"identity.rna.where": "gradient"})
    rna, placebo = gather(collect([tmp_path])).chosen
    assert (rna.method, rna.nu, placebo.method, placebo.nu) == ("RMU", 0.02, "RMU, noise on the gradient", 0.1)
    assert rna.plain is not None


def test_a_setting_without_forget_tasks_does_not_win_for_that(tmp_path):
    made_up_run(tmp_path / "plain")
    made_up_run(tmp_path / "good", nu=0.1)
    made_up_run(tmp_path / "bad", nu=0.02, answers={("mmlu", "perturbed"): [True] * 48 + [False] * 12})
    write_scores(tmp_path / "bad", [score for score in read_scores(tmp_path / "bad") if "wmdp" not in score.task])
    [choice] = gather(collect([tmp_path])).chosen
    assert choice.nu == 0.1


def test_of_two_models_one_is_shown_and_the_caption_says_so(tmp_path):
    for seed in (0, 1):
        made_up_run(tmp_path / f"a{seed}", seed=seed)
    made_up_run(tmp_path / "b", method="rsv", changes={"identity.model.name": "other", "inputs.model": "n" * 64})
    m = gather(collect([tmp_path]))
    assert [choice.method for choice in m.chosen] == ["RMU"]
    assert "Of the 2 combinations of model" in m.choice
    drawn = trade_off(m)
    assert drawn.data["method"].tolist() == ["Base", "RMU"]
    assert "Of the 2 combinations of model" in drawn.caption
    assert table("settings", m)["method"].tolist() == ["Base", "RMU", "Base", "RSV"]


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


def test_effects_are_means_of_the_seeds_differences(tmp_path):
    """Of ten questions perturbation takes 4 in seed 0 and 2 in seed 1: -30 points, with Student's t over seeds.

    RNA wins them back: +30 points, over seeds and questions.
    """
    for seed, lost in ((0, 4), (1, 2)):
        right = {("mmlu", "default"): [True] * 10, ("mmlu", "perturbed"): [False] * lost + [True] * (10 - lost)}
        made_up_run(tmp_path / f"s{seed}", seed=seed, answers=right)
        won = {("mmlu", "default"): [True] * 10, ("mmlu", "perturbed"): [True] * 10}
        made_up_run(tmp_path / f"r{seed}", seed=seed, nu=0.1, answers=won)
    rows = table("contrasts", gather(collect([tmp_path]))).set_index(["role", "effect of"])
    half = 10 * stats.t.ppf(0.975, 1)
    row = rows.loc[("retain", "perturbation, without RNA")]
    assert (row["difference"], row["seeds"]) == (f"-30.0 ({-30 - half:+.1f} .. {-30 + half:+.1f})", 2)
    mean, low, high = two_way([100 * np.array([[1] * 4 + [0] * 6, [1] * 2 + [0] * 8])])
    assert rows.loc[("retain", "RNA, perturbed"), "difference"] == f"{mean:+.1f} ({low:+.1f} .. {high:+.1f})"


def test_the_effect_of_rna_in_a_single_seed_is_paired_by_question(tmp_path):
    """As mmlu, whose answers are kept by subject; RNA was asked the first 20 questions alone."""
    for name, nu, count in (("plain", 0.0, 60), ("rna", 0.1, 20)):
        made_up_run(tmp_path / name, nu=nu, answers={("mmlu", "perturbed"): [nu > 0] * count})
    rows = table("contrasts", gather(collect([tmp_path]))).set_index(["role", "effect of"])
    assert rows.loc[("retain", "RNA, perturbed"), "difference"] == "+100.0 (+73.5 .. +100.0) q"


@pytest.mark.parametrize(
    ("rna", "why"),
    [
        ({"seed": 1}, "no seed of both: 0 and 1"),
        ({"changes": {"inputs.data": {"bio": "other"}}}, "trained on other texts"),
        ({"changes": {"inputs.query_words.perturbed": "v" * 64}}, "replaced words"),
    ],
)
def test_what_cannot_be_paired_is_in_the_table_with_the_reason(tmp_path, rna, why):
    made_up_run(tmp_path / "plain")
    made_up_run(tmp_path / "rna", nu=0.1, **rna)
    rows = table("contrasts", gather(collect([tmp_path]))).set_index(["role", "effect of"])
    assert why in rows.loc[("retain", "RNA, perturbed"), "why not"]
    assert rows.loc[("retain", "RNA, perturbed"), "difference"] == ""


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


def test_figures_for_which_there_are_results_are_drawn(material):
    """No coefficient varies, and these runs have no eval.every and no attack."""
    made = {figure.name: figure for figure in figures(material)}
    assert list(made) == ["trade_off", "figure_1", "figure_3", "figure_4", "training"]
    for figure in made.values():
        assert len(figure.data) > 0
    three = made["figure_3"].data
    value = three[(three["method"] == "RSV") & (three["x"] == 0.3) & (three["role"] == "retain")]
    assert set(value["missing"]) == {"seed 2 not there"}


def page_of(m, title=""):
    return page(m, [made for make in TABLES.values() if (made := make(m))], list(figures(m)), title=title)


def test_the_first_screen_is_the_result(material):
    text = page_of(material)
    sections = re.findall(r'<section id="s-(\w+)"', text)
    assert sections[:2] == ["trade_off", "settings"]
    assert sections[-2:] == ["runs", "unusable"]
    assert "Nothing to show" not in text


def test_the_table_of_settings_has_means_with_intervals_and_marks_the_best(material):
    rows = table("settings", material)
    columns = ["method", "c", "β", "ν", "forget", "forget, perturbed", "retain", "retain, perturbed"]
    assert list(rows)[:8] == columns
    assert rows["method"].tolist()[0] == "Base"
    assert rows[rows["method"].str.endswith(" *")]["ν"].tolist() == [0.1, 0.1, 0.1]
    assert re.fullmatch(r"\d+\.\d ± \d+\.\d", rows["retain"].iloc[-1])


def test_a_run_with_texts_alone_has_a_table_of_them(tmp_path, capsys):
    scores = [Score("base", "forget_text", "bio", None, "default", "nats", 3.0, stderr=0.1)]
    scores += [Score("unlearned", "forget_text", "bio", None, "default", "nats", 9.25, stderr=0.1)]
    scores += [Score("unlearned", "forget_text", "bio", None, "default", "agreement", 0.0625, stderr=0.05)]
    made_up_run(tmp_path / "run", scores=scores, changes={"identity.eval.tasks": {}})
    main(["report", str(tmp_path), "--format", "latex"])
    text = capsys.readouterr().out
    assert r"forget\_text" in text
    assert r"9.250 $\pm$ 0.196 q" in text
    assert r"forget\_text agreement" in text
    assert r"6.2 $\pm$ 9.8 q" in text
    with pytest.raises(SystemExit, match=r"--table table_1: these runs have nothing for it\. There is: settings, runs"):
        main(["report", str(tmp_path), "--format", "latex", "--table", "table_1"])


def test_a_maxlogit_that_is_no_number_is_left_out(tmp_path):
    run = made_up_run(tmp_path / "a")
    samples = read_samples(run)
    write_samples(run, [replace(s, maxlogits=s.maxlogits and [*s.maxlogits, math.nan]) for s in samples])
    [data] = [figure.data for figure in figures(gather(collect([tmp_path]))) if figure.name == "figure_1"]
    densities = data[data["panel"] == "maxlogit"]
    assert set(densities["series"]) == {"Base", "RMU"}
    assert densities["density"].notna().all()


def test_the_training_that_a_run_took_over_is_shown(tmp_path):
    made_up_run(tmp_path / "first")
    second = made_up_run(tmp_path / "second", seed=1, changes={"training_from": "first"})
    shutil.rmtree(tmp_path / "first/samples", ignore_errors=True)
    (second / "train.jsonl").unlink()
    m = gather(collect([second]))
    assert "training" in {figure.name for figure in figures(m)}
    assert m.problems == {}


@pytest.mark.slow  # alone draws the figures into files
def test_figures_as_pdf_png_and_csv(grid, tmp_path):
    main(["report", str(grid), "--figures", str(tmp_path / "figures"), "-o", str(tmp_path / "r.html")])
    written = {file.name for file in (tmp_path / "figures").iterdir()}
    names = ("figure_1", "figure_3", "figure_4", "trade_off", "training")
    assert written == {f"{name}.{kind}" for name in names for kind in ("pdf", "png", "csv")}
    for name in names:
        [sheet] = PdfReader(tmp_path / f"figures/{name}.pdf").pages
        assert 200 < float(sheet.mediabox.width) < 900
        assert (tmp_path / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "accuracy in %" in PdfReader(tmp_path / "figures/figure_3.pdf").pages[0].extract_text()
    assert not pd.read_csv(tmp_path / "figures/figure_3.csv").empty


def test_tables_as_text(material):
    text = {kind: as_text(TABLES["table_1"](material), kind) for kind in ("md", "latex", "csv")}
    assert set(pd.read_csv(io.StringIO(text["csv"]))["method"]) == {"Base", "RMU", "Adaptive RMU", "RSV"}
    assert "| Adaptive RMU" in text["md"]
    for part in (r"\begin{tabular}", r"near\_bio", r"$\pm$"):
        assert part in text["latex"]


def test_a_wide_table_fits_a_terminal_and_says_in_every_part_what_its_rows_are(material):
    table = TABLES["settings"](material)
    lines = as_text(table, "md", width=80).splitlines()
    assert max(map(len, lines)) <= 80
    heads = [line for line in lines if line.startswith("| method")]
    assert len(heads) > 1
    assert all([cell.strip() for cell in head.split("|")[1:5]] == ["method", "c", "β", "ν"] for head in heads)
    shown = [cell.strip() for head in heads for cell in head.split("|")[5:-1]]
    assert shown == list(table.data)[4:]


def test_every_score_as_csv(tmp_path):
    run = made_up_run(tmp_path / "runs/one")
    main(["report", str(run), "--format", "csv", "--table", "scores", "-o", str(tmp_path / "a.csv")])
    rows = pd.read_csv(tmp_path / "a.csv")
    row = rows[(rows["task"] == "mmlu") & (rows["query"] == "perturbed")]
    row = row[(row["model"] == "unlearned") & row["against"].isna()]
    place = ("unlearned", "mmlu", "perturbed", None)
    [score] = [s.value for s in read_scores(run) if (s.model, s.task, s.query, s.against) == place]
    assert row["value"].item() == pytest.approx(score)


@pytest.mark.slow  # alone reads runs of every kind of damage
def test_what_was_not_used_is_said_and_a_mistake_ends_with_one_line(grid, tmp_path, capsys):
    main(["report", str(grid), "-o", str(tmp_path / "r.html")])
    told = capsys.readouterr().err
    assert "rmu-0.05-1: failed: CUDA is out of memory" in told
    with pytest.raises(SystemExit, match=r"Error: .*no such folder"):
        main(["report", str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    ("kind", "cell"),
    [("md", r"=1+1 \| b \x1b[2J c"), ("csv", r"'=1+1 | b \x1b[2J c"), ("latex", r"=1+1 | b \textbackslash{}x1b[2J c")],
)
def test_text_of_runs_stays_in_its_cell_and_is_no_formula(kind, cell, tmp_path, capsys):
    made_up_run(tmp_path / "a", status="failed", changes={"error": "=1+1 | b \x1b[2J\nc"})
    main(["report", str(tmp_path), "--format", kind, "--table", "unusable"])
    [line] = [line for line in capsys.readouterr().out.splitlines() if "failed" in line]
    assert cell in line


HOSTILE = '=1+1\n\x1b[2J|a & b \\ ,"'
NAME = '=1+1|a & b ,"'  # what a name of a model, method, role or task may be


@pytest.fixture(scope="module")
def of_hostile_names(tmp_path_factory):
    """Two finished runs and a failed one with names that no table should be at the mercy of."""
    root = tmp_path_factory.mktemp("hostile")
    tasks = {"retain": [f"mmlu{NAME}"], f"near{NAME}": ["near"], "forget": ["wmdp"]}
    changes = {"identity.eval.tasks": tasks, "identity.model.name": NAME}
    argument = {f"c{HOSTILE}": 1.0, "norm": HOSTILE}
    for nu in (0.0, 0.1):
        made_up_run(root / f"{nu:g}{HOSTILE}", method=NAME, argument=argument, nu=nu, changes=changes)
    made_up_run(root / "failed", status="failed", changes={"error": HOSTILE})
    return gather(collect([root]))


@pytest.mark.parametrize("name", ["settings", "contrasts", "runs", "scores", "unusable"])
def test_no_name_breaks_a_row_becomes_a_formula_or_steers_a_terminal(name, of_hostile_names):
    made = TABLES[name](of_hostile_names)
    rows = len(made.data)
    texts = {kind: as_text(made, kind) for kind in ("csv", "md", "latex")}
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", "".join(texts.values()))
    read = list(csv.reader(io.StringIO(texts["csv"])))
    assert [len(row) for row in read] == [len(made.data.columns)] * (rows + 1)
    cells = [cell for row in read for cell in row]
    assert not any("\n" in cell or re.match(r"[=@]|[+-]\D", cell) for cell in cells)
    heading, table_lines, note = texts["md"].strip().split("\n\n")
    assert (len(heading.splitlines()), len(table_lines.splitlines()), len(note.splitlines())) == (1, rows + 2, 1)
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table_lines.splitlines()}
    assert bars == {len(made.data.columns) + 1}
    ends = [line for line in texts["latex"].splitlines() if line.endswith(r" \\")]
    assert [len(re.findall(r"(?<!\\)&", line)) for line in ends] == [len(made.data.columns) - 1] * (rows + 1)


def test_no_file_of_text_steers_a_terminal(tmp_path):
    write_text("a \x1b[2J\n", tmp_path / "a.md")
    assert (tmp_path / "a.md").read_text() == "a \\x1b[2J\n"


def test_a_terminal_in_ascii_gets_a_table(material, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    accept_every_letter()
    write_table(TABLES["settings"](material), "md", None)
    out.flush()
    assert "| RMU *" in out.buffer.getvalue().decode("ascii")


def test_a_log_that_is_no_file_does_not_hang_the_report(tmp_path):
    run = made_up_run(tmp_path / "a")
    (run / "train.jsonl").unlink()
    os.mkfifo(run / "train.jsonl")
    m = gather(collect([tmp_path]))
    assert "training" not in {figure.name for figure in figures(m)}
    assert list(m.problems) == [str(run)]


def test_options_that_do_not_go_together(grid, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(grid), "--table", "table_1"])
    assert "--table needs --format" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="published: no such table"):
        main(["report", str(grid), "--format", "md", "--table", "published"])


def test_output_that_cannot_be_written_is_refused_before_anything_is_computed(grid, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"Error: -o .*: it is a folder"):
        main(["report", str(grid), "--format", "csv", "-o", str(tmp_path)])
    os.mkfifo(tmp_path / "fifo")  # like /dev/stdout, which a file must not take the place of
    with pytest.raises(SystemExit, match=r"Error: -o .*: it is no regular file"):
        main(["report", str(grid), "--format", "csv", "-o", str(tmp_path / "fifo")])
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(write, "collect", lambda _: pytest.fail("it was computed before"))
    with pytest.raises(SystemExit, match=r"Error: .*-o FILE chooses another place"):
        main(["report", str(grid), "-o", str(tmp_path / "file/report.html")])
    monkeypatch.setattr("unlearn.paper.claims.write.collect", lambda _: pytest.fail("it was computed before"))
    with pytest.raises(SystemExit, match=r"Error: .*-o FILE chooses another place"):
        main(["claims", str(grid), "-o", str(tmp_path / "file/claims.md")])


def test_text_of_runs_cannot_become_markup(tmp_path):
    made_up_run(tmp_path / "a", changes={"error": "</script><img src=x onerror=alert(1)>"}, status="failed")
    made_up_run(tmp_path / "b", changes={"identity.model.name": "</script><b>x</b>"})
    made_up_run(tmp_path / "c")
    text = page_of(gather(collect([tmp_path])), title="<i>t</i>")
    assert "<img src=x" not in text
    assert "</script><b>" not in text
    assert "<i>t</i>" not in text


def test_nothing_heavy_is_imported():
    heavy = {"torch", "transformers", "lm_eval", "wandb"}
    code = f"import sys, unlearn.analysis.report.write; print({heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout.strip() == "set()", ran.stderr
