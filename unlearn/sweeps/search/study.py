"""The search itself: Optuna asks for a generation of points, their jobs run together, and Optuna is told the results.

A trial's point depends on the seed of the sampler, on its number and on what was told before, not on the process that
asks for it. So a search that was killed goes on to the same trials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.errors import UserError
from unlearn.screen import say
from unlearn.storage.hashing import json_sha256
from unlearn.sweeps.search.figures import mean_or_worst, says_not_finite, violation
from unlearn.sweeps.search.library import optuna
from unlearn.sweeps.search.settings import SearchSettings
from unlearn.sweeps.search.space import Space

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

JOURNAL, NAME = "search.log", "search"
OF_TRIAL, ERROR, FOLDERS = "figures", "error", "folders"  # what is kept of a trial
ABOUT = "about"  # what is kept of the search


@dataclass(frozen=True)
class Outcome:
    """What became of a job: the run's folder and its figures, or why there are none."""

    folder: str | None = None
    figures: Mapping[str, float] | None = None
    error: str | None = None


Run = Callable[[dict[int, list[str]]], Mapping[int, Outcome]]  # runs jobs, {number: overrides}


def open_study(folder: Path, settings: SearchSettings) -> Study:
    """The study of a folder, a new one if there is none. The caller holds the folder's lock."""
    directions = ["maximize" if d == "max" else "minimize" for d in (settings.objectives or {}).values()]
    folder.mkdir(parents=True, exist_ok=True)
    Path(f"{folder / JOURNAL}.lock").unlink(missing_ok=True)  # of a process that was killed
    return optuna().create_study(storage=_storage(folder), study_name=NAME, directions=directions, load_if_exists=True)


def read_study(folder: Path) -> Study:
    """The study of a folder, as it is. Raises UserError if there is none."""
    if not (folder / JOURNAL).is_file():
        raise UserError(f"{folder}: this is no search's folder (there is no {JOURNAL}).")
    return optuna().load_study(storage=_storage(folder), study_name=NAME)


def _storage(folder: Path) -> Any:
    journal = optuna().storages.journal
    return optuna().storages.JournalStorage(journal.JournalFileBackend(str(folder / JOURNAL)))


@dataclass(frozen=True)
class Search:
    """A space, the settings, the study, and the function that runs jobs."""

    space: Space
    settings: SearchSettings
    study: Study
    run: Run

    def go_on(self, between: Callable[[], None] = lambda: None) -> None:
        """Try points until there are `search.trials`; `between` is called between two generations.

        Raises UserError if all trials of a generation fail before any has succeeded. They are not told then: the same
        command tries them again.
        """
        while numbers := self.next_generation():
            trials = [self._ask(number) for number in numbers]
            say(f"Search: trials {numbers[0]} to {numbers[-1]} of {self.settings.trials}")
            jobs: dict[int, list[str]] = {}
            for trial in trials:
                jobs |= self._jobs(trial)
            outcomes = self.run(jobs)
            self._check_any_works(trials, outcomes)
            for trial in trials:
                self._tell(trial, [outcomes[number] for number in self._jobs(trial)])
            if self.next_generation():
                between()

    def next_generation(self) -> list[int]:
        """The numbers of trials to ask for, or asked for and not told; none if the search is done."""
        told = {trial.number for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()}
        first = next(number for number in range(len(told) + 1) if number not in told)
        size = self.settings.generation
        end = min((first // size + 1) * size, self.settings.trials)
        return [number for number in range(first, end) if number not in told]

    def _ask(self, number: int) -> Trial:
        """A trial, with the values that it had if it was asked for before.

        Each value is drawn by a sampler with a seed of its own: some may be known already.
        """
        self.study.sampler = sampler = self._sampler(number)
        trials = self.study.get_trials(deepcopy=False)
        asked = number < len(trials)
        trial = optuna().trial.Trial(self.study, trials[number]._trial_id) if asked else self.study.ask()
        assert trial.number == number
        if isinstance(sampler, optuna().samplers.NSGAIISampler):  # what it keeps has another order than what it chose
            frozen = self.study.get_trials(deepcopy=False)[number]
            sampler.get_parent_population(self.study, sampler.get_trial_generation(self.study, frozen))
        assert trial.relative_params is not None  # drawn here, by the first sampler
        for key in self.space.distributions:
            self.study.sampler = self._sampler(number, key)
            self.space.suggest(trial, key)
        return trial

    def _sampler(self, *of: int | str) -> BaseSampler:
        samplers, seed = optuna().samplers, int(json_sha256([self.settings.sampler_seed, *of])[:8], 16)
        if self.settings.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        if self.settings.sampler == "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=max(2, self.settings.generation))
        return samplers.TPESampler(seed=seed)

    def _jobs(self, trial: Trial) -> dict[int, list[str]]:
        """The jobs of a trial, one for each seed."""
        seeds = self.settings.seeds or []
        point = self.space.overrides(trial.params)
        return {trial.number * len(seeds) + i: [*point, f"seed={seed}"] for i, seed in enumerate(seeds)}

    def _check_any_works(self, trials: Sequence[Trial], outcomes: Mapping[int, Outcome]) -> None:
        states = {trial.state for trial in self.study.get_trials(deepcopy=False)}
        errors = [outcome.error for outcome in outcomes.values() if outcome.error is not None]
        if len(errors) == len(outcomes) and optuna().trial.TrialState.COMPLETE not in states:
            numbers = f"{trials[0].number} to {trials[-1].number}"
            raise UserError(f"All trials, {numbers}, failed. The same command tries them again. The first: {errors[0]}")

    def _tell(self, trial: Trial, outcomes: Sequence[Outcome]) -> None:
        state = optuna().trial.TrialState
        trial.set_user_attr(FOLDERS, [outcome.folder for outcome in outcomes])
        error = next((outcome.error for outcome in outcomes if outcome.error is not None), None)
        if error is not None:
            trial.set_user_attr(ERROR, error)
            self.study.tell(trial, state=state.PRUNED if says_not_finite(error) else state.FAIL)
            return
        runs = [outcome.figures or {} for outcome in outcomes]
        figures = mean_or_worst({name: [run[name] for run in runs] for name in runs[0]}, self.settings.of)
        trial.set_user_attr(OF_TRIAL, figures)
        for name, bound in (self.settings.bounds or {}).items():
            if name not in trial.constraints:  # of a process that was killed just here
                trial.set_constraint(name, violation(name, figures[name], bound))
        self.study.tell(trial, [figures[name] for name in self.settings.objectives or {}])


def front(study: Study) -> list[FrozenTrial]:
    """The trials that keep the bounds and that no other one beats in all objectives; equal points are there once."""
    trials = {tuple(sorted(trial.params.items())): trial for trial in reversed(study.best_trials)}
    return sorted(trials.values(), key=lambda trial: trial.number)
