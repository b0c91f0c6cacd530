"""A run in the terminal: a progress bar with losses, then a table of accuracies and the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from unlearn.records.headline import headline
from unlearn.records.scores import Score, in_order
from unlearn.screen import console, say

if TYPE_CHECKING:  # this is imported where torch is not
    from unlearn.training.loop import Record


ShowResult = Callable[[Sequence[Score], Path, str | None], None]  # scores, the run's folder, where its curves are
Models = dict[tuple[str, str, str], dict[str, Score]]  # (role, task, query) -> model -> score


@contextmanager
def training_progress(steps: int) -> Iterator[Callable[[Record], None]]:
    """A progress bar with the remaining time, losses, tokens per second and memory. Yields the function to update it.

    Without a terminal, a line is printed at each tenth of the steps.
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
        printed_tenths = 0

        def show(record: Record) -> None:
            nonlocal printed_tenths
            done = record.step + 1
            progress.update(bar, completed=done, description=_figures(record))
            if not console.is_terminal and 10 * done // steps > printed_tenths:
                printed_tenths = 10 * done // steps
                left = progress.tasks[bar].time_remaining
                eta = "" if left is None else f"  {timedelta(seconds=int(left))} left"
                say(f"training {done}/{steps}{eta}  {_figures(record)}")

        yield show


def _figures(record: Record) -> str:
    """Losses, speed and memory in one line."""
    losses = f"forget {record.forget_loss:.4g}  retain {record.retain_loss:.4g}"
    return f"{losses}  {record.tokens_per_second:,.0f} tokens/s  {record.memory_mb:,.0f} MB"


def show_result(scores: Sequence[Score], folder: Path, curves: str | None) -> None:
    """Print both models' scores and their difference by task and query, the run's folder, and the curves' address.

    Accuracies are in percent, scores of held-out texts in nats per token. Other measures have a table each.
    """
    asked = [score for score in in_order(scores) if score.part_of is None]
    shown = {"acc": ("Accuracy in %", 100, 1), "nats": ("Texts, nats per token", 1, 3)}
    shown |= {measure: (measure, 1, 3) for measure in _of_other_tasks(asked)}
    for measure, (unit, scale, digits) in shown.items():
        models: Models = {}
        for score in asked:
            if score.measure == measure and score.against is None:
                models.setdefault((score.role, score.task, score.query), {})[score.model] = score
        if models:
            _show_table(f"{unit} (± standard error), {folder.name}", models, scale, digits)
    say(f"Files: {folder}")
    if curves is not None:
        say(f"W&B:   {curves}")


def show_result_line(scores: Sequence[Score], folder: Path, _curves: str | None) -> None:
    """`show_result` in one line, for a run of a sweep: the folder and the headline scores."""
    parts = []
    for name, figure in headline(scores).items():
        unit = " %" if figure.measure == "acc" else " nats"
        base = "" if figure.base is None else f" (base {figure.text(figure.base)})"
        parts.append(f"{name} {figure.text(figure.unlearned)}{unit}{base}")
    say(f"{folder}: {', '.join(parts) or 'done'}")


def _show_table(title: str, models: Models, scale: int, digits: int) -> None:
    """Print a row for each role, task and query, and a section for each role."""
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for column in ("role", "task", "query"):
        table.add_column(column, overflow="fold")
    for column in ("base", "unlearned", "difference"):
        table.add_column(column, justify="right", no_wrap=True)
    for role in dict.fromkeys(role for role, _, _ in models):
        table.add_section()
        for place, of_place in models.items():
            if place[0] == role:
                base, unlearned = of_place.get("base"), of_place.get("unlearned")
                difference = "-"
                if base is not None and unlearned is not None:
                    difference = f"{scale * (unlearned.value - base.value):+.{digits}f}"
                table.add_row(*place, _cell(base, scale, digits), _cell(unlearned, scale, digits), difference)
    console.print(table)


def _cell(score: Score | None, scale: int, digits: int) -> str:
    if score is None:
        return "-"
    error = "" if score.stderr is None else f" ± {scale * score.stderr:.{digits}f}"
    return f"{scale * score.value:.{digits}f}{error}"


def _of_other_tasks(scores: Sequence[Score]) -> list[str]:
    """The measures of tasks that have no accuracy and no nats."""
    usual = {score.task for score in scores if score.measure in ("acc", "nats")}
    return list(dict.fromkeys(s.measure for s in scores if s.task not in usual and s.measure != "truncated"))
