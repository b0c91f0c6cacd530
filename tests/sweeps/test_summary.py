"""The table at the end of a sweep: means over seeds, differences from the base model, the setting that is marked."""

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from unlearn.records.samples import Sample, write_samples
from unlearn.records.scores import Score, write_scores
from unlearn.screen import accept_every_letter
from unlearn.storage.lock import FolderLock
from unlearn.sweeps.status import show_status
from unlearn.sweeps.summary import settings_of, show_summary, summary
from unlearn.sweeps.sweep import Job, Sweep

ROLES = (("retain", "default"), ("retain", "perturbed"), ("forget", "default"))
BASE = (0.60, 0.55, 0.65)


def scores_of(values, measure="acc", suffix=""):
    """Rows of a run with one task in each role, of which `values` has the figure for each of ROLES."""
    rows = []
    for model, figures in (("base", BASE), ("unlearned", values)):
        for (role, query), value in zip(ROLES, figures, strict=True):
            if value is not None:
                rows.append(Score(model, f"{role}{suffix}", f"task_{role}", None, query, measure, value))
    return rows


@pytest.fixture
def sweep(tmp_path):
    """A function that makes a sweep of {overrides: figures, or rows}."""

    def make(runs, options=4):
        made = Sweep(tmp_path / "sweep")
        for number, (overrides, values) in enumerate(runs.items()):
            folder = tmp_path / "runs" / f"rmu-toy-{number:010d}"
            folder.mkdir(parents=True)
            write_scores(folder, values if isinstance(values, list) else scores_of(values))
            question = Sample("base", "forget", "task_forget", "default", 0, "", loglikelihoods=[-1.0] * options)
            write_samples(folder, [question] if options else [])
            made.jobs[number] = Job(number, [*overrides.split(), "tracker=none"], folder=str(folder))
        return made

    return make


def text_of(sweep, width=80):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(summary(sweep))
    return capture.get()


GRID = {
    "rna.nu=0 seed=0": (0.58, 0.40, 0.30),
    "rna.nu=0 seed=1": (0.56, 0.44, 0.32),
    "rna.nu=0.1 seed=0": (0.57, 0.50, 0.31),
    "rna.nu=0.1 seed=1": (0.57, 0.54, 0.31),
    "rna.nu=9 seed=0": (0.60, 0.55, 0.64),  # retains all and has forgotten nothing
}


def test_a_row_is_a_setting_with_means_over_seeds(sweep):
    """Of 0.40 and 0.44 the mean is 42 %, the standard error 0.02 * sqrt(2) / sqrt(2) = 2 points, the difference -13."""
    text = text_of(sweep(GRID))
    assert re.search(r"rna\.nu=0 +2 +57\.0 ± 1\.0 +42\.0 ± 2\.0 +31\.0 ± 1\.0", text)
    assert re.search(r"rmu-toy-0000000000 \+1 +-3\.0 +-13\.0 +-34\.0", text)
    assert re.search(r"rna\.nu=9 +1 +60\.0 +55\.0 +64\.0", text)  # one seed: no error
    assert re.search(r"base model +60\.0 +55\.0 +65\.0", text)
    assert max(map(len, text.splitlines())) <= 80


def test_of_the_settings_that_have_forgotten_the_one_that_retains_most_is_marked(sweep):
    """From 65 % four fifths of the way to guessing, 25 %, is 33 %. nu=9 is at 64 %."""
    text = text_of(sweep(GRID))
    assert [line.split()[1] for line in text.splitlines() if re.match(r" *\* +rna", line)] == ["rna.nu=0.1"]
    assert "80 % of the way from the base model to guessing, 25.0 %" in " ".join(text.split())


@pytest.mark.parametrize(
    ("forget", "options", "marked"),
    [(0.329, 4, True), (0.331, 4, False), (0.525, 2, True), (0.54, 2, False), (0.1, 1, False), (0.1, 0, False)],
)
def test_what_has_forgotten_too_little_is_not_marked(sweep, forget, options, marked):
    text = text_of(sweep({"rna.nu=0 seed=0": (0.5, 0.5, forget), "rna.nu=1 seed=0": (0.6, 0.5, 0.6)}, options))
    assert ("* " in text) == marked
    assert ("No setting is marked" in text) != marked


def test_a_base_model_that_only_guesses_has_nothing_to_forget(sweep):
    rows = [replace(s, value=0.2) if (s.model, s.role) == ("base", "forget") else s for s in scores_of((0.5, 0.5, 0.1))]
    assert "No setting is marked" in text_of(sweep({"seed=0": rows, "seed=1": rows}))


def test_held_out_texts_are_shown_in_nats_where_no_questions_are_asked(sweep):
    """The loss on the texts to be forgotten rises by 1.35 and 0.85 nats; at least 1 is wanted."""
    runs = {
        "method.c=2 seed=0": scores_of((0.9, None, 2.0), "nats", "_text"),
        "method.c=1 seed=0": scores_of((0.6, None, 1.5), "nats", "_text"),
    }
    text = text_of(sweep(runs))
    assert "retain, nats" in text
    assert "perturbed" not in text
    assert re.search(r"\* +method\.c=2 +1 +0\.90 +2\.00", text)
    assert re.search(r"rmu-toy-0000000000 +\+0\.30 +\+1\.35", text)


def test_a_setting_without_finite_answers_is_shown_and_not_marked(sweep):
    broken = scores_of((0.9, 0.9, None))
    broken.append(Score("unlearned", "forget", "task_forget", None, "default", "not_finite", 4.0, n=4))
    text = text_of(sweep(GRID | {"rna.nu=2 seed=0": broken}))
    assert [line.split()[1] for line in text.splitlines() if re.match(r" *\* +rna", line)] == ["rna.nu=0.1"]
    assert re.search(r"rna\.nu=2 +1 +90\.0 +90\.0 +not finite", text)


def test_a_sweep_without_any_finite_answer_has_a_table(sweep):
    count = Score("unlearned", "forget", "task_forget", None, "default", "not_finite", 4.0, n=4)
    assert "not finite" in text_of(sweep({"rna.nu=3 seed=0": [count, *scores_of((0.5, 0.5, None))]}))


def test_runs_without_scores_and_jobs_of_one_run_are_not_counted(sweep, tmp_path):
    made = sweep(GRID)
    again = Job(5, ["rna.nu=0", "rna=none", "seed=0", "tracker=none"], folder=made.jobs[0].folder)
    made.jobs |= {
        5: again,
        6: Job(6, ["rna.nu=3"], folder=str(tmp_path / "none")),
        7: Job(7, ["rna.nu=-1"], error="no"),
    }
    assert [len(setting.runs) for setting in settings_of(made)] == [2, 2, 1]
    assert summary(Sweep(tmp_path / "empty")) is None


def test_a_terminal_in_ascii_gets_the_table(sweep, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    accept_every_letter()
    show_summary(sweep(GRID))
    out.flush()
    assert "57.0 ? 1.0" in out.buffer.getvalue().decode("ascii")


@pytest.mark.parametrize("ended", [True, False])
def test_status_shows_the_table_when_all_have_ended(sweep, capsys, ended):
    made = sweep(GRID)
    made.jobs = {n: replace(job, hydra_folder=str(n)) for n, job in made.jobs.items()}
    made.write()
    for job in made.jobs.values():
        (Path(job.folder) / "run.json").write_text(json.dumps({"status": "done" if ended else "running"}))
    with FolderLock(made.folder):  # not interrupted, but pending
        show_status(made.folder, retry_failed=False, once=True)
    assert ("Means over seeds" in capsys.readouterr().out) == ended
