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
from unlearn.records.names import is_text_task
from unlearn.records.scores import AGREEMENT, COUNTS, NOT_FINITE, Score, in_order, not_finite, of_all
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

    Accuracies and agreement are in percent, the likelihood of held-out texts is in nats per token. Other measures have
    a table each. Where answers were not finite, their number stands in the place of the score.
    """
    asked = [score for score in in_order(scores) if score.part_of is None and score.against is None]
    shown = {"acc": ("Accuracy in %", 100, 1), "nats": ("Texts, nats per token", 1, 3)}
    shown[AGREEMENT] = ("Texts, agreement with the base model's first choices in %", 100, 1)
    shown |= {measure: (measure, 1, 3) for measure in _of_other_tasks(asked)}
    tables: dict[str, Models] = {measure: {} for measure in shown}
    for score in asked:
        measure = _missing_measure(score, asked) if score.measure == NOT_FINITE else score.measure
        if measure in shown:
            tables[measure].setdefault((score.role, score.task, score.query), {})[score.model] = score
    for measure, models in tables.items():
        if models:
            unit, scale, digits = shown[measure]
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
    counts = not_finite(scores)
    if counts:
        parts.append(f"{sum(count.value for count in counts):.0f} answers are not finite")
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
                if base is not None and unlearned is not None and base.measure == unlearned.measure != NOT_FINITE:
                    difference = f"{scale * (unlearned.value - base.value):+.{digits}f}"
                table.add_row(*place, _cell(base, scale, digits), _cell(unlearned, scale, digits), difference)
    console.print(table)


def _cell(score: Score | None, scale: int, digits: int) -> str:
    if score is None:
        return "-"
    if score.measure == NOT_FINITE:
        return of_all(score)
    error = "" if score.stderr is None else f" ± {scale * score.stderr:.{digits}f}"
    return f"{scale * score.value:.{digits}f}{error}"


def _missing_measure(count: Score, asked: Sequence[Score]) -> str:
    """The measure in whose place a count of answers that are not finite stands."""
    of_task = [s.measure for s in asked if (s.role, s.task) == (count.role, count.task) and s.measure not in COUNTS]
    first = next((measure for measure in of_task if measure in ("acc", "nats")), None)
    return first or next(iter(of_task), "nats" if is_text_task(count.role, count.task) else "acc")


def _of_other_tasks(scores: Sequence[Score]) -> list[str]:
    """The measures of tasks that have no accuracy and no nats."""
    usual = {score.task for score in scores if score.measure in ("acc", "nats")}
    return list(dict.fromkeys(s.measure for s in scores if s.task not in usual and s.measure not in COUNTS))
