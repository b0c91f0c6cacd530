"""The report: what it finds, what it computes, what it says of what is missing, and what it writes."""

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pypdf import PdfReader
from scipy import stats

from tests.made_up import made_up_grid, made_up_run
from unlearn.errors import UserError
from unlearn.report import published
from unlearn.report.__main__ import main
from unlearn.report.choose import without
from unlearn.report.collect import collect, warnings
from unlearn.report.curves import against
from unlearn.report.figures import figures
from unlearn.report.frames import missing_seeds
from unlearn.report.material import gather
from unlearn.report.page import page
from unlearn.report.phases import phases
from unlearn.report.tables import contrasts, overview, settings, table_1, tables, unusable
from unlearn.sweep import Job, Sweep


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return made_up_grid(tmp_path_factory.mktemp("grid") / "runs")


@pytest.fixture(scope="module")
def material(grid):
    return gather(collect([grid]), paper=True)


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
    found = unusable(m).data.set_index("run")
    assert dict(found["status"]) == {"torn": "corrupt", "empty": "corrupt", "half": "unfinished", "bare": "corrupt"}
    assert "metrics.json" in found.loc["torn", "why"]
    assert "lacks identity.model.name" in found.loc["bare", "why"]
    assert set(m.accuracies["run"]) == {"good"}


def test_a_sweeps_jobs_that_never_began_or_could_not_be_composed_are_listed(tmp_path):
    run = made_up_run(tmp_path / "outputs/runs/a")
    sweep = Sweep.begin(tmp_path / "outputs/sweeps/2026-01-01/12-00-00")
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
    assert warnings(collect([tmp_path])) == []
    made_up_run(tmp_path / "b", changes={"identity.model.name": "other", "code.commit": "e" * 40, "code.changed": True})
    made_up_run(tmp_path / "c", changes={"identity.eval.limit": 5})
    told = " ".join(warnings(collect([tmp_path])))
    assert "2 models" in told
    assert "2 code versions" in told
    assert "2 question sets" in told
    assert "uncommitted changes" in told
    assert gather(collect([tmp_path])).about["other"].str.contains("model.name=").all()


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
    told = settings(material).data.set_index(["method", "ν"])["missing"]
    assert told["RMU", 0.05] == "seed 1 failed"
    assert told["RSV", 0.3] == "seed 2 not there"
    assert set(told.drop([("RMU", 0.05), ("RSV", 0.3)])) == {""}
    rows = overview(material).data
    assert len(rows) == 35
    assert rows[rows["status"] == "failed"]["retain, default"].isna().all()


def test_a_seed_that_never_began_is_missing_in_its_setting(tmp_path):
    made_up_run(tmp_path / "a")
    waiting = made_up_run(tmp_path / "b", seed=1, status="running")
    record = json.loads((waiting / "run.json").read_text())
    del record["inputs"]["query_words"]
    (waiting / "run.json").write_text(json.dumps(record))
    assert settings(gather(collect([tmp_path]))).data["missing"].tolist() == ["seed 1 unfinished"]


def test_what_was_asked_later_is_shown_as_well(tmp_path):
    """Trained with eval=none, then `python -m unlearn.evaluate RUN`."""
    run = made_up_run(tmp_path / "a")
    record = json.loads((run / "run.json").read_text())
    later = {**record["identity"]["eval"], "query_words": record["inputs"].pop("query_words")}
    record["identity"]["eval"] |= {"tasks": {}, "queries": []}
    record["evaluations"] = [later]
    (run / "run.json").write_text(json.dumps(record))
    made_up_run(tmp_path / "b", nu=0.1)
    m = gather(collect([tmp_path]))
    assert set(m.unlearned["nu"]) == {0.0, 0.1}
    rows = contrasts(m).data.set_index(["role", "effect of"])
    assert rows.loc[("retain", "RNA, perturbed"), "questions"] == 60


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
        assert without(choice.plain, "rna.nu") == without(choice.rna, "rna.nu")


def test_of_several_coefficients_one_stands_for_both(tmp_path):
    for c, right in ((2.0, 40), (6.5, 50)):
        for nu in (0.0, 0.1):
            retained = {("mmlu", "perturbed"): [True] * right + [False] * (60 - right)}
            made_up_run(tmp_path / f"{c}-{nu}", argument={"c": c}, nu=nu, answers=retained)
    [choice] = gather(collect([tmp_path])).chosen
    assert choice.coefficient == "c=6.5"
    assert '"c": 6.5' in choice.plain
    assert '"c": 6.5' in choice.rna


def test_curves_join_settings_that_differ_in_nothing_but_the_key(tmp_path):
    for c in (2.0, 6.5):
        for nu in (0.0, 0.1):
            made_up_run(tmp_path / f"{c}-{nu}", argument={"c": c}, nu=nu)
    made_up_run(tmp_path / "rsv", method="rsv", argument={"c": 10.0})
    rows = against(gather(collect([tmp_path])), "method.c")
    assert set(rows["method"]) == {"RMU"}  # RSV has one c only
    assert rows.groupby("series")["nu"].nunique().tolist() == [1, 1]
    assert rows.groupby("series")["x"].unique().map(list).tolist() == [[2.0, 6.5], [2.0, 6.5]]


def _curve(retain, forget, nus=(0.01, 0.1, 0.2, 0.5)):
    rows = [
        {"x": nu, "role": role, "query": "perturbed", "mean": value}
        for role, values in (("retain", retain), ("forget", forget))
        for nu, value in zip(nus, values, strict=True)
    ]
    return pd.DataFrame(rows)


def test_phases_of_a_curve_that_rises_declines_and_rises_again():
    plain = _curve([40], [27], nus=[0.0])
    found = phases(_curve([50, 60, 45, 55], [28, 28, 27, 60]), plain).set_index("phase")
    assert found.loc["I"].tolist() == pytest.approx([0.01 / 1.15, 0.1])
    assert found.loc["II"].tolist() == [0.1, 0.2]
    assert found.loc["III"].tolist() == [0.2, 0.5]
    higher = phases(_curve([50, 60, 45, 70], [28, 28, 27, 60]), plain).set_index("phase")
    assert higher.equals(found)  # the third phase may end above the first


def test_phases_that_are_not_there_are_not_shown():
    rising = phases(_curve([50, 55, 60, 65], [28, 28, 28, 28]), _curve([60], [28], nus=[0.0]))
    assert rising.to_dict("list") == {"phase": ["I"], "begin": [0.01], "end": [0.5]}
    # retained knowledge alone rises again: that is not the paper's third phase
    assert "III" not in set(phases(_curve([50, 60, 45, 55], [28, 28, 28, 27]), _curve([60], [28], nus=[0.0]))["phase"])
    assert phases(_curve([50, 60], [28, 28], nus=(0.01, 0.1)), _curve([60], [28], nus=[0.0])).empty


def test_contrasts_are_paired_by_question_and_averaged_over_seeds(tmp_path):
    """Of ten questions perturbation takes 4 in seed 0 and 2 in seed 1: -30 points; means are -1, -.5 and 0."""
    for seed, lost in ((0, 4), (1, 2)):
        right = {("mmlu", "default"): [True] * 10, ("mmlu", "perturbed"): [False] * lost + [True] * (10 - lost)}
        made_up_run(tmp_path / f"s{seed}", seed=seed, answers=right)
    row = (
        contrasts(gather(collect([tmp_path])))
        .data.set_index(["role", "effect of"])
        .loc[("retain", "perturbation, without RNA")]
    )
    means = [-1.0, -1.0, -0.5, -0.5] + [0.0] * 6
    assert row["difference"] == -30.0
    assert row["p"] == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
    assert row["95 %"] == f"{-30 - 196 * stats.sem(means):+.1f} .. {-30 + 196 * stats.sem(means):+.1f}"
    assert (row["questions"], row["seeds"]) == (10, 2)


def test_runs_of_other_questions_are_not_paired_and_the_reason_is_told(tmp_path):
    made_up_run(tmp_path / "plain")
    made_up_run(tmp_path / "rna", nu=0.1, changes={"inputs.query_words.perturbed": "v" * 64})
    m = gather(collect([tmp_path]))
    rows = contrasts(m).data.set_index(["role", "effect of"])
    assert "words that replace options differ" in rows.loc[("retain", "RNA, perturbed"), "why not"]
    assert math.isnan(rows.loc[("retain", "RNA, perturbed"), "difference"])
    assert rows.loc[("retain", "RNA, default"), "questions"] == 60  # which have no such words
    assert any("question sets" in warning for warning in warnings(m.runs))


def test_table_1_is_in_the_papers_form(tmp_path):
    def answers(default, perturbed):
        return {
            (task, query): [True] * (n - less) + [False] * (100 - n + less)
            for task, less in (("near_bio", 0), ("near_cyber", 7))
            for query, n in (("default", default), ("perturbed", perturbed))
        }

    made_up_run(tmp_path / "plain", answers=answers(64, 50))
    made_up_run(tmp_path / "rna", nu=0.03, answers=answers(63, 60))
    rows = table_1(gather(collect([tmp_path]), paper=True)).data.set_index(["method", "RNA", "query"])
    assert rows.loc[("RMU", "original", "perturbed"), "near_bio"] == "50.0 ± 5.0"
    assert rows.loc[("RMU", "w/ RNA", "perturbed"), "near_bio"] == "60.0 ± 4.9 (+10.0)"
    assert rows.loc[("RMU", "w/ RNA", "default"), "near_bio"] == "63.0 ± 4.9 (-1.0)"
    assert rows.loc[("RMU", "w/ RNA", "perturbed"), "near_cyber"] == "53.0 ± 5.0 (+10.0)"
    assert rows.loc[("Base", "original", "default"), "near_bio"] == "100.0 ± 0.0"
    assert rows.loc[("RMU", "w/ RNA", "perturbed"), "MMLU C. Bio. (published)"] == "44.4 ± 4.1 (-5.6)"
    assert "MMLU C. Bio. (published)" not in table_1(gather(collect([tmp_path]))).data


def test_published_numbers_agree_with_each_other():
    """The gains printed in Table 1 in parentheses, of Adaptive RMU and RSV under perturbation."""
    rows = published.table_1().set_index(["method", "rna", "task", "query"])["acc"]
    for (method, task), gain in {
        ("Adaptive RMU", "MMLU C. Bio."): 29.2,
        ("Adaptive RMU", "MMLU C. Sec."): 4.0,
        ("RSV", "MMLU C. Bio."): 17.4,
        ("RSV", "MMLU C. Sec."): 8.0,
        ("RMU", "MMLU C. Bio."): -5.6,
    }.items():
        difference = rows[method, True, task, "perturbed"] - rows[method, False, task, "perturbed"]
        assert difference == pytest.approx(gain)


# What is written


def test_every_figure_is_drawn_and_has_its_data(material):
    made = {figure.name: figure for figure in figures(material)}
    assert set(made) == {"figure_1", "figure_2", "figure_3", "figure_4", "pareto", "training"}
    assert made["figure_2"].chart is None  # no coefficient varies
    assert "sweep=figure_2" in made["figure_2"].caption
    for name in set(made) - {"figure_2"}:
        assert made[name].chart is not None, made[name].caption
        assert len(made[name].data) > 0
    three = made["figure_3"].data
    value = three[(three["method"] == "RSV") & (three["x"] == 0.3) & (three["role"] == "retain")]
    assert set(value["missing"]) == {"seed 2 not there"}


def test_figures_as_pdf_png_and_csv(grid, tmp_path):
    main([str(grid), "--figures", str(tmp_path / "figures"), "-o", str(tmp_path / "r.html")])
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
    main([str(grid), "--format", kind, "--table", "table_1"])
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
    main([str(grid), "--format", "csv", "--table", "accuracies", "-o", str(tmp_path / "a.csv")])
    rows = pd.read_csv(tmp_path / "a.csv")
    metrics = json.loads((grid / "rmu-0-0/metrics.json").read_text())
    row = rows[(rows["run"] == "rmu-0-0") & (rows["task"] == "mmlu") & (rows["query"] == "perturbed")]
    assert row[row["model"] == "unlearned"]["acc"].item() == pytest.approx(
        100 * metrics["unlearned/mmlu/perturbed/acc"], abs=1e-3
    )


def test_what_was_not_used_is_said_and_a_mistake_ends_with_one_line(grid, tmp_path, capsys):
    main([str(grid), "-o", str(tmp_path / "r.html")])
    told = capsys.readouterr().err
    assert "rmu-0.05-1: failed: CUDA is out of memory" in told
    with pytest.raises(SystemExit, match=r"Error: .*no such folder"):
        main([str(tmp_path / "nowhere")])


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
    code = (
        "import sys, unlearn.report.__main__; print({'torch', 'transformers', 'lm_eval', 'wandb'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert ran.stdout.strip() == "set()", ran.stderr
