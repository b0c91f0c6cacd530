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
    """Base, unlearned and difference of each task and query in percent, the run's folder, and where the curves are."""
    if roles:
        asked = {name.partition("/")[2].rpartition("/")[0] for name in metrics}
        table = Table(title=f"Accuracy in % (± standard error), {folder.name}", box=SIMPLE_HEAD, pad_edge=False)
        for column in ("role", "task", "query"):
            table.add_column(column)
        for column in ("base", "unlearned", "difference"):
            table.add_column(column, justify="right")
        for role, tasks in roles.items():
            table.add_section()
            for task in tasks:
                for query in (q for q in queries if f"{task}/{q}" in asked):
                    table.add_row(role, task, query, *_accuracies(metrics, task, query))
        console.print(table)
    say(f"Files: {folder}")
    if curves is not None:
        say(f"W&B:   {curves}")


def _accuracies(metrics: Mapping[str, float], task: str, query: str) -> tuple[str, str, str]:
    def cell(model: str) -> str:
        accuracy = metrics.get(f"{model}/{task}/{query}/acc")
        if accuracy is None:
            return "-"
        return f"{100 * accuracy:.1f} ± {100 * metrics.get(f'{model}/{task}/{query}/acc_stderr', 0.0):.1f}"

    base, unlearned = (metrics.get(f"{model}/{task}/{query}/acc") for model in ("base", "unlearned"))
    difference = "-" if base is None or unlearned is None else f"{100 * (unlearned - base):+.1f}"
    return cell("base"), cell("unlearned"), difference
