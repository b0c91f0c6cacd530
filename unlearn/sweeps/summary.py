"""The result of a sweep as one table: a row for each setting, with means over its seeds, and the best one marked."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from unlearn.errors import UserError
from unlearn.records.headline import Figure, figure_name, headline
from unlearn.records.samples import guessing_accuracy
from unlearn.records.scores import not_finite, read_scores
from unlearn.screen import WIDE, PlainConsole
from unlearn.sweeps.sweep import Sweep

SHARE = 0.8  # of the way from the base model's accuracy to guessing that counts as forgotten
NATS = 1.0  # a token, by which the loss of forgotten texts has risen at least
RETAINED = ("retain perturbed", "retain")  # the best setting is chosen by the first that all settings have
console = PlainConsole(width=None if sys.stdout.isatty() else WIDE)


@dataclass
class Setting:
    """Runs that differ in their seed alone: what the user set for them, their folders and their figures."""

    label: str
    folders: list[Path] = field(default_factory=list)
    runs: list[dict[str, Figure]] = field(default_factory=list)
    not_finite: set[str] = field(default_factory=set)  # figures that a run lacks, as its answers are not finite

    def figures(self, name: str) -> list[Figure]:
        """A figure of each run; empty if a run lacks it."""
        figures = [run[name] for run in self.runs if name in run]
        return figures if len(figures) == len(self.runs) else []

    def forgot(self, guessing: float | None) -> bool:
        """Whether the mean over seeds lost `SHARE` of the base model's accuracy above guessing; of texts, `NATS`."""
        figures = self.figures("forget")
        loss = mean(figure.loss for figure in figures)
        if figures[0].measure == "nats":
            return loss >= NATS
        base = mean(math.nan if figure.base is None else figure.base for figure in figures)
        return guessing is not None and base > guessing and loss >= SHARE * (base - guessing)


def settings_of(sweep: Sweep) -> list[Setting]:
    """The settings of the finished runs of a sweep, in its order. Raises UserError for a file that cannot be read."""
    settings: dict[str, Setting] = {}
    folders = set()
    for number, job in sweep.jobs.items():
        folder = Path(job.folder or "")
        if job.folder is None or folder in folders or not (folder / "scores.parquet").is_file():
            continue
        folders.add(folder)
        scores = read_scores(folder)
        figures = headline(scores)
        label = " ".join(part for part in sweep.label(number).split(" ") if not part.startswith("seed="))
        setting = settings.setdefault(label, Setting(label or "all runs"))
        setting.folders.append(folder)
        setting.runs.append(figures)
        setting.not_finite |= {figure_name(s.role, s.query) for s in not_finite(scores) if s.model == "unlearned"}
    return [setting for setting in settings.values() if any(setting.runs) or setting.not_finite]


def best_of(settings: Sequence[Setting], guessing: float | None) -> tuple[Setting | None, str]:
    """The setting that retains most of those that have forgotten, and the rule in words."""
    name = next((name for name in RETAINED if all(s.figures(name) for s in settings)), None)
    if name is None or not all(s.figures("forget") for s in settings):
        return None, "No setting is marked: not all have figures of what is retained and of what is forgotten."
    if settings[0].figures("forget")[0].measure == "nats":
        forgotten = f"the loss on texts to be forgotten has risen by at least {NATS:g} nat a token"
    elif guessing is None:
        return None, "No setting is marked: the questions are not multiple-choice, so what guessing gives is not known."
    else:
        forgotten = (
            f"forget accuracy has fallen by at least {100 * SHARE:.0f} % of the way from the base model to guessing, "
            f"{100 * guessing:.1f} %"
        )
    candidates = [setting for setting in settings if setting.forgot(guessing)]
    if not candidates:
        return None, f"No setting is marked: in none of them {forgotten}."
    best = min(candidates, key=lambda setting: mean(figure.loss for figure in setting.figures(name)))
    return best, (
        f"* retains most ({name}), of the settings in which {forgotten}. Settings that differ by no more than their "
        "standard errors (±, over seeds) are equally good, and the mark says nothing about attacks (unlearn attack)."
    )


def summary(sweep: Sweep) -> Group | None:
    """The table of a sweep's finished runs, with the base model in the first row; None if there are no figures."""
    settings = settings_of(sweep)
    if not settings:
        return None
    shown = ("retain", "retain perturbed", "forget")
    names = [name for name in shown if any(s.figures(name) or name in s.not_finite for s in settings)]
    finite = [setting for setting in settings if not setting.not_finite]
    best, rule = best_of(finite or settings, guessing_accuracy(settings[0].folders[0], "forget"))
    parent = os.path.commonpath([folder.parent for setting in settings for folder in setting.folders])
    heads = [_head(name, settings) for name in names]
    table = Table(
        Column(""), Column("setting, folder", overflow="fold"), Column("seeds", justify="right"),
        *(Column(head, justify="right", no_wrap=True) for head in heads),
        box=SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    table.add_row("", "base model", "", *(_base(settings, name) for name in names), end_section=True)
    for setting in settings:
        further = f" +{len(setting.folders) - 1}" if len(setting.folders) > 1 else ""
        folder = os.path.relpath(setting.folders[0], parent)
        lacking = {name: "not finite" if name in setting.not_finite else "-" for name in names}
        cells = [_cell(setting.figures(name)) or lacking[name] for name in names]
        mark = "*" if setting is best else ""
        table.add_row(mark, escape(f"{setting.label}\n{folder}{further}"), str(len(setting.runs)), *cells)
    title = Text(f"Means over seeds ± standard error, below them the difference from the base model. Runs: {parent}")
    return Group(title, table, Text(rule))


def show_summary(sweep: Sweep) -> None:
    """Print the table, or why there is none."""
    try:
        table = summary(sweep)
    except UserError as error:
        console.print(Text(f"No table of results: {error}"))
        return
    if table is not None:
        console.print(table)


def _head(name: str, settings: Sequence[Setting]) -> str:
    measures = {figure.measure for setting in settings for figure in setting.figures(name)}
    unit = "nats" if measures == {"nats"} else "%"
    role, _, query = name.partition(" ")
    return f"{role}, {unit}\n{query}" if query else f"{role}, {unit}"


def _base(settings: Sequence[Setting], name: str) -> str:
    """The base model's figure, if it is the same for all settings."""
    figures = [figure for setting in settings for figure in setting.figures(name)]
    values = {figure.text(figure.base) for figure in figures if figure.base is not None}
    return values.pop() if len(values) == 1 else ""


def _cell(figures: Sequence[Figure]) -> str:
    """Mean over seeds and its standard error; below it, the difference from the base model. Empty without figures."""
    if not figures:
        return ""
    text = figures[0].text
    values = [figure.unlearned for figure in figures]
    error = f" ± {text(stdev(values) / math.sqrt(len(values)))}" if len(values) > 1 else ""
    differences = [figure.unlearned - figure.base for figure in figures if figure.base is not None]
    if not differences:
        return f"{text(mean(values))}{error}"
    sign = "+" if mean(differences) >= 0 else ""
    return f"{text(mean(values))}{error}\n{sign}{text(mean(differences))}"
