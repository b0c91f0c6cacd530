"""Finding searches below folders, and reading their studies by Optuna. A search that cannot be read is told."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.analysis.collect import places_below
from unlearn.errors import UserError, describe
from unlearn.storage.schema import leads_out
from unlearn.sweeps.search.library import optuna
from unlearn.sweeps.search.study import ABOUT, JOURNAL, read_study
from unlearn.sweeps.search.trials import TrialRow, trial_rows

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

FEWEST = 20  # complete trials of which keys have an importance: it compares the best tenth of them with all


@dataclass(frozen=True)
class FoundSearch:
    """A search that was found. `problem` says why nothing of it can be shown.

    `importance` is {objective: {key: its share}}, and empty if there are fewer than FEWEST complete trials.
    """

    folder: Path
    problem: str = ""
    objectives: Mapping[str, str] = field(default_factory=dict)  # name -> max or min
    bounds: Mapping[str, float] = field(default_factory=dict)
    space: Mapping[str, BaseDistribution] = field(default_factory=dict)
    trials: Sequence[TrialRow] = ()
    importance: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def judged(self) -> list[str]:
        """The names of all figures that count."""
        return list(dict.fromkeys([*self.objectives, *self.bounds]))

    @property
    def complete(self) -> list[TrialRow]:
        """The trials with figures."""
        return [trial for trial in self.trials if trial.complete]

    @property
    def lacks(self) -> str:
        """Why there is no importance of keys, in a sentence; empty if there is one."""
        if self.importance:
            return ""
        return f"The importance of keys needs {FEWEST} complete trials; there are {len(self.complete)}."


def find_searches(folders: Sequence[Path]) -> list[FoundSearch]:
    """The searches in and below these folders, each once, in the order of their paths."""
    found: dict[Path, FoundSearch] = {}
    for top in folders:
        for folder in places_below(top):
            if isinstance(folder, Path) and (folder / JOURNAL).is_file() and folder.resolve() not in found:
                found[folder.resolve()] = _read(folder, top)
    return [found[place] for place in sorted(found)]


def _read(folder: Path, top: Path) -> FoundSearch:
    if leads_out(folder / JOURNAL, top):
        return FoundSearch(folder, f"{JOURNAL} is a link that leads out of {top}.")
    try:
        study = read_study(folder)
        return _of_study(folder, study, study.user_attrs[ABOUT]["settings"])
    except UserError as error:  # Optuna is not installed
        return FoundSearch(folder, str(error))
    except Exception as error:  # whatever a damaged journal makes Optuna raise
        return FoundSearch(folder, f"{JOURNAL} cannot be read: {describe(error)}.")


def _of_study(folder: Path, study: Study, settings: Mapping[str, Any]) -> FoundSearch:
    trials = trial_rows(study)
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.values is not None]
    objectives = {str(name): str(direction) for name, direction in settings["objectives"].items()}
    bounds = {str(name): float(bound) for name, bound in settings["bounds"].items()}
    if not complete:
        return FoundSearch(folder, "no trial is complete.")
    if not all(
        math.isfinite(trial.figures[name]) for trial in trials if trial.complete for name in objectives | bounds
    ):
        return FoundSearch(folder, "a figure of a complete trial is not finite.")
    importance = {}
    if len(complete) >= FEWEST:
        importance = {name: _importance(study, place) for place, name in enumerate(objectives)}
    return FoundSearch(folder, "", objectives, bounds, complete[-1].distributions, trials, importance)


def _importance(study: Study, objective: int) -> dict[str, float]:
    """By Optuna: {key: its share in what makes the best tenth of the trials}."""
    sign = -1.0 if study.directions[objective].name == "MAXIMIZE" else 1.0

    def loss(trial: FrozenTrial) -> float:
        assert trial.values is not None
        return sign * trial.values[objective]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna says that small values are good, which `sign` sees to
        return dict(optuna().importance.get_param_importances(study, target=loss))
