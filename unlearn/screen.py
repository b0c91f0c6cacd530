"""What a run shows in the terminal: a progress bar with losses, then a table of accuracies and where the files are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:  # this is imported where torch is not
    from unlearn.train import Record

console = Console(stderr=True)


def say(message: str) -> None:
    """A line of plain text."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def training_progress(steps: int) -> Iterator[Callable[[Record], None]]:
    """A bar with losses and tokens per second; yields the function that moves it."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=steps)

        def show(record: Record) -> None:
            losses = f"forget {record.forget_loss:.4g}  retain {record.retain_loss:.4g}"
            text = f"{losses}  {record.tokens_per_second:,.0f} tokens/s"
            progress.update(bar, completed=record.step + 1, description=text)

        yield show


def show_result(
    metrics: Mapping[str, float],
    roles: Mapping[str, Sequence[str]],
    queries: Sequence[str],
    folder: Path,
    curves: str | None,
) -> None:
    """Base, unlearned and difference of each task and query in percent, the run's folder, and where the curves are."""
    if roles:
        table = Table(title=f"Accuracy in % (± standard error), {folder.name}", box=SIMPLE_HEAD, pad_edge=False)
        for column in ("role", "task", "query"):
            table.add_column(column)
        for column in ("base", "unlearned", "difference"):
            table.add_column(column, justify="right")
        for role, tasks in roles.items():
            table.add_section()
            for task in tasks:
                for query in queries:
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
