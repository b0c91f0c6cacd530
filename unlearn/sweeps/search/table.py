"""The table of a search: the trials on the front, or the best one, and the commands that repeat them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from unlearn.screen import WIDE, PlainConsole
from unlearn.sweeps.search.figures import FIGURES, violation
from unlearn.sweeps.search.study import ABOUT, ERROR, FOLDERS, OF_TRIAL, front
from unlearn.sweeps.search.trials import STATES

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

console = PlainConsole(width=None if sys.stdout.isatty() else WIDE)


def show_front(study: Study, *, commands: bool = False) -> None:
    """Print what became of the trials, and the best ones; with `commands`, also how to run these again."""
    about, trials = study.user_attrs[ABOUT], study.get_trials(deepcopy=False)
    console.print(_counts(study), markup=False)
    shown = front(study)
    if not shown:
        complete = [trial for trial in trials if trial.values is not None]
        shown = sorted(complete, key=lambda trial: sum(max(0.0, v) for v in trial.constraints.values()))[:1]
        if shown:
            console.print("No trial keeps the bounds yet. The nearest to them:")
    if shown:
        console.print(_table(shown, about["settings"]))
    if commands:
        for trial in shown:
            console.print(f"#{trial.number}: {command(trial, about)}", markup=False, soft_wrap=True)


def command(trial: FrozenTrial, about: Mapping[str, Any]) -> str:
    """The command that repeats a trial."""
    seeds = about["settings"]["seeds"]
    values = [f"{key}={value}" for key, value in trial.params.items()]
    seed = f"seed={','.join(map(str, seeds))}"
    flags = ["-m"] if len(seeds) > 1 else []
    return shlex.join(["python", "launch.py", *flags, *about["fixed"], *values, seed])


def _counts(study: Study) -> str:
    states = [trial.state.name for trial in study.get_trials(deepcopy=False)]
    counts = [f"{states.count(state)} {word}" for state, word in STATES.items() if state in states]
    errors = {t.user_attrs[ERROR]: t.number for t in study.get_trials(deepcopy=False) if ERROR in t.user_attrs}
    shown = "".join(f"\n  #{number}: {error}" for error, number in list(errors.items())[-3:])
    return f"Trials: {', '.join(counts)}{shown}"


def _table(trials: list[FrozenTrial], settings: Mapping[str, Any]) -> Table:
    objectives, bounds = settings["objectives"], settings["bounds"]
    heads = [f"{name}, {FIGURES[name].unit}\n{direction}" for name, direction in objectives.items()]
    heads += [_head(name, bound) for name, bound in bounds.items() if name not in objectives]
    keys = list(trials[0].params)
    columns = [Column(head, justify="right") for head in [*heads, *keys]]
    table = Table(
        Column("trial", justify="right"), *columns, Column("run", overflow="fold"), box=SIMPLE_HEAD, pad_edge=False
    )
    for trial in trials:
        figures = trial.user_attrs[OF_TRIAL]
        cells = [_figure(name, figures[name], bounds) for name in dict.fromkeys([*objectives, *bounds])]
        values = [_short(trial.params[key]) for key in keys]
        folder, *more = trial.user_attrs[FOLDERS]
        run = folder.rpartition("/")[2] + (f" +{len(more)}" if more else "")
        table.add_row(f"#{trial.number}", *cells, *map(escape, values), escape(run))
    return table


def _head(name: str, bound: float) -> str:
    return f"{name}, {FIGURES[name].unit}\nat {'most' if FIGURES[name].good == 'min' else 'least'} {bound:g}"


def _figure(name: str, value: float, bounds: Mapping[str, float]) -> str:
    broken = name in bounds and violation(name, value, bounds[name]) > 0
    return f"{value:.{3 if FIGURES[name].unit == 'nats' else 1}f}{' (broken)' if broken else ''}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
