"""The trials of a search as rows, for the report and for W&B."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from unlearn.sweeps.search.study import ERROR, FOLDERS, OF_TRIAL, front

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

STATES = {"COMPLETE": "complete", "FAIL": "failed", "PRUNED": "not finite", "RUNNING": "not ended"}  # of Optuna


@dataclass(frozen=True)
class TrialRow:
    """A trial: what became of it, its point, its figures if it is complete, and the names of its runs."""

    number: int
    state: str
    point: Mapping[str, Any]
    figures: Mapping[str, float]
    keeps_bounds: bool
    on_front: bool
    runs: Sequence[str]
    error: str

    @property
    def complete(self) -> bool:
        """Whether it has figures."""
        return self.state == STATES["COMPLETE"]


def trial_rows(study: Study) -> list[TrialRow]:
    """The trials of a study, in their order."""
    best = {trial.number for trial in front(study)}
    return [_row(trial, trial.number in best) for trial in study.get_trials(deepcopy=False)]


def _row(trial: FrozenTrial, on_front: bool) -> TrialRow:
    attributes, complete = trial.user_attrs, trial.values is not None
    return TrialRow(
        number=trial.number,
        state=STATES.get(trial.state.name, trial.state.name.lower()),
        point=trial.params,
        figures={name: float(value) for name, value in attributes[OF_TRIAL].items()} if complete else {},
        keeps_bounds=complete and all(value <= 0 for value in trial.constraints.values()),
        on_front=on_front,
        runs=[PurePath(folder).name for folder in attributes.get(FOLDERS, []) if folder],
        error=str(attributes.get(ERROR, "")),
    )


def best_so_far(rows: Sequence[TrialRow], objectives: Mapping[str, str]) -> Iterator[dict[str, float]]:
    """After each trial: of each objective, the best figure of the trials up to it that keep the bounds."""
    best: dict[str, float] = {}
    for row in rows:
        for name, direction in objectives.items() if row.keeps_bounds else ():
            better = max if direction == "max" else min
            best[name] = better(best.get(name, row.figures[name]), row.figures[name])
        yield dict(best)
