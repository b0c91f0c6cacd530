"""A search in Weights & Biases: one run, whose steps are trials, with a table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.config.schema import TrackerConfig
from unlearn.errors import describe
from unlearn.screen import say
from unlearn.storage.hashing import json_sha256
from unlearn.sweeps.search.study import ABOUT
from unlearn.sweeps.search.trials import STATES, TrialRow, best_so_far, trial_rows
from unlearn.tracking.tracker import remove_earlier_attempts

if TYPE_CHECKING:
    import wandb
    from optuna.study import Study

STEP = "search/trial"


@contextmanager
def tracked(folder: Path, study: Study, tracker: TrackerConfig) -> Iterator[Callable[[], None]]:
    """Inside the block, the function sends the trials that W&B has not; without W&B, it does nothing.

    A resumed search goes on in the same W&B run. Errors of W&B end nothing: the study has everything.
    """
    if tracker.name != "wandb":
        yield lambda: None
        return
    run: Any = None
    with _surviving("the search"):
        run = _start(folder, study, tracker)
    failed = True
    try:
        yield lambda: None if run is None else _send(run, study)
        failed = False
    finally:
        if run is not None:
            with _surviving("the end of the search"):
                run.finish(exit_code=int(failed))


def _start(folder: Path, study: Study, tracker: TrackerConfig) -> wandb.Run:
    from unlearn.tracking.wandb_run import start_wandb  # imports wandb, which takes long

    about = study.user_attrs[ABOUT]
    run = start_wandb(
        folder,
        run_id=json_sha256(str(folder))[:8],
        name=folder.name,
        config=dict(about),
        project=tracker.project,
        entity=tracker.entity,
        mode=tracker.mode,
        group=tracker.group or " ".join(folder.parts[-2:]),  # as its jobs
        job_type="search",
        tags=list(tracker.tags),
        timeout_s=tracker.timeout_s,
    )
    run.define_metric(STEP)
    run.define_metric("search/*", step_metric=STEP)
    remove_earlier_attempts(folder, run)
    return run


def _send(run: wandb.Run, study: Study) -> None:
    """Each new trial as a step, tables of all trials and of the front, and counts of states in the summary."""
    with _surviving("the trials"):
        settings, rows = study.user_attrs[ABOUT]["settings"], trial_rows(study)
        ended = [row for row in rows if row.state != STATES["RUNNING"]]
        sent = run.summary.get(STEP, -1)
        for row, so_far in zip(rows, best_so_far(rows, settings["objectives"]), strict=True):
            if row in ended and row.number > sent:
                figures = {f"search/{name}": value for name, value in row.figures.items()}
                run.log(
                    {STEP: row.number, **figures, **{f"search/best_{name}": value for name, value in so_far.items()}}
                )
        run.log({"trials": _table(ended), "front": _table([row for row in ended if row.on_front])})
        states = [row.state for row in rows]
        run.summary.update({f"search/{state}": states.count(state) for state in STATES.values() if state in states})


def _table(rows: Sequence[TrialRow]) -> wandb.Table:
    """A row for each trial: its point, its figures, and the names of its runs."""
    from wandb import Table

    keys = list(dict.fromkeys(key for row in rows for key in row.point))
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    cells: list[list[Any]] = [
        [
            *(row.number, row.state, row.on_front, *map(row.point.get, keys), *map(row.figures.get, names)),
            *(", ".join(row.runs), row.error),
        ]
        for row in rows
    ]
    return Table(["trial", "state", "on the front", *keys, *names, "runs", "error"], cells)


@contextmanager
def _surviving(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        say(f"W&B did not accept {what} ({describe(error)}). The search's folder has it.")
