"""A run in the terminal: a progress bar with losses, then a table of accuracies and the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from unlearn.screen import console, say

if TYPE_CHECKING:  # this is imported where torch is not
    from unlearn.training.loop import Record


@contextmanager
def training_progress(steps: int) -> Iterator[Callable[[Record], None]]:
    """A progress bar with the time left, losses, tokens per second and memory. Yields the function that updates it.

    Without a terminal, it is a line at each tenth of the steps.
    """
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=steps)
        said = 0  # tenths

        def show(record: Record) -> None:
            nonlocal said
            done = record.step + 1
            progress.update(bar, completed=done, description=_figures(record))
            if not console.is_terminal and 10 * done // steps > said:
                said = 10 * done // steps
                left = progress.tasks[bar].time_remaining
                eta = "" if left is None else f"  {timedelta(seconds=int(left))} left"
                say(f"training {done}/{steps}{eta}  {_figures(record)}")

        yield show


def _figures(record: Record) -> str:
    """Losses, speed and memory in a few words."""
    losses = f"forget {record.forget_loss:.4g}  retain {record.retain_loss:.4g}"
    return f"{losses}  {record.tokens_per_second:,.0f} tokens/s  {record.memory_mb:,.0f} MB"


def show_result(
    metrics: Mapping[str, float],
    roles: Mapping[str, Sequence[str]],
    queries: Sequence[str],
    folder: Path,
    curves: str | None,
) -> None:
    """Base, unlearned and difference of each task and query, the run's folder, and where the curves are.

    Accuracies are in percent, those of held-out texts nats a token. Tasks with neither have a table for each of their
    metrics.
    """
    shown = {"acc": ("Accuracy in %", 100, 1), "nats": ("Texts, nats a token", 1, 3)}
    shown |= {metric: (metric, 1, 3) for metric in _of_other_tasks(metrics)}
    for metric, (unit, scale, digits) in shown.items():
        table = Table(title=f"{unit} (± standard error), {folder.name}", box=SIMPLE_HEAD, pad_edge=False)
        for column in ("role", "task", "query"):
            table.add_column(column)
        for column in ("base", "unlearned", "difference"):
            table.add_column(column, justify="right")
        for role, tasks in roles.items():
            table.add_section()
            for task in tasks:
                for query in queries:
                    cells = _cells(metrics, f"{task}/{query}/{metric}", scale, digits)
                    if any(cells):
                        table.add_row(role, task, query, *(cell or "-" for cell in cells))
        if table.row_count:
            console.print(table)
    say(f"Files: {folder}")
    if curves is not None:
        say(f"W&B:   {curves}")


def _of_other_tasks(metrics: Mapping[str, float]) -> list[str]:
    """The metrics of tasks that have no accuracy and no nats."""
    names = [name.rsplit("/", 2) for name in metrics if name.startswith(("base/", "unlearned/"))]
    usual = {task for task, _, metric in names if metric in ("acc", "nats")}
    others = dict.fromkeys(metric for task, _, metric in names if task not in usual)
    return [m for m in others if not (m.endswith("_stderr") or m == "truncated" or m.startswith(("default_", "base_")))]


def _cells(metrics: Mapping[str, float], name: str, scale: int, digits: int) -> list[str]:
    """Base, unlearned and their difference; empty where it was not measured."""
    cells = []
    base, unlearned = (metrics.get(f"{model}/{name}") for model in ("base", "unlearned"))
    for model, value in (("base", base), ("unlearned", unlearned)):
        error = metrics.get(f"{model}/{name}_stderr")
        told = "" if error is None else f" ± {scale * error:.{digits}f}"  # lm-eval has none for some groups
        cells.append("" if value is None else f"{scale * value:.{digits}f}{told}")
    known = None if base is None or unlearned is None else unlearned - base
    return [*cells, "" if known is None else f"{scale * known:+.{digits}f}"]
