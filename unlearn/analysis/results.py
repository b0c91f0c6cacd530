"""The results of any finished runs as data frames: `unlearn.results(FOLDERS)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from unlearn.analysis.collect import Run, collect
from unlearn.records.samples import sample_frame
from unlearn.records.scores import flat, score_frame


@dataclass(frozen=True)
class Results:
    """What was found of runs, as data frames. `scores` and `samples` have the settings of their run as columns.

    Attributes:
        found: the runs, whatever their status.
        settings: the dotted keys of the configuration in which the finished runs differ, beside method, nu and seed.
    """

    found: Sequence[Run]

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row for each run: folder, status, why (it is not done), its settings, and train.NAME of its training."""
        rows = []
        for run in self.found:
            training = {f"train.{name}": value for name, value in run.training.items()}
            rows.append({**_place(run), "status": run.status, "why": run.why, **self._settings_of(run), **training})
        return pd.DataFrame(rows)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """A row for each score of each finished run: its settings, and the columns of `Score`."""
        return self._joined([score_frame(run.scores) for run in self._done])

    @cached_property
    def samples(self) -> pd.DataFrame:
        """A row for each question and text: settings, and the columns of `unlearn.records.samples.Sample`, and value.

        The files are read when it is first used; of many runs over all of MMLU these are millions of rows.
        """
        return self._joined([sample_frame(run.samples()) for run in self._done])

    @cached_property
    def settings(self) -> list[str]:
        """Dotted keys in which the finished runs differ, beside method, nu and seed, which are always there."""
        described = [flat(run.identity, ".") for run in self._done]
        keys = dict.fromkeys(key for settings in described for key in settings)
        always = ("method.name", "rna.nu", "seed")
        return [key for key in keys if key not in always and len({str(s.get(key)) for s in described}) > 1]

    @property
    def _done(self) -> list[Run]:
        return [run for run in self.found if run.done]

    def _settings_of(self, run: Run) -> dict[str, Any]:
        settings = flat(run.identity, ".")
        first = {"method": settings.get("method.name"), "nu": settings.get("rna.nu"), "seed": settings.get("seed")}
        return first | {key: settings.get(key) for key in self.settings}

    def _joined(self, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
        """The frames of all finished runs below each other, each with its run's folder and settings in front."""
        named = []
        for run, frame in zip(self._done, frames, strict=True):
            columns = {**_place(run), **self._settings_of(run)}
            named.append(pd.concat([pd.DataFrame([columns] * len(frame), columns=list(columns)), frame], axis=1))
        # An empty frame would make every column one of objects.
        filled = [frame for frame in named if len(frame)] or named[:1]
        return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()


def _place(run: Run) -> dict[str, str]:
    return {"run": run.folder.name, "folder": str(run.folder)}


def results(folders: str | Path | Sequence[str | Path]) -> Results:
    """The results of the runs in these folders of runs, of sweeps, or above them.

    Raises UserError for a folder that does not exist or holds no run.

    >>> scores = unlearn.results("outputs").scores            # doctest: +SKIP
    >>> accuracies = scores.query("measure == 'acc' and against.isna() and part_of.isna()")  # doctest: +SKIP
    >>> accuracies.groupby(["method", "nu", "model", "role", "query"])["value"].mean()  # doctest: +SKIP
    """
    listed = [folders] if isinstance(folders, (str, Path)) else folders
    return Results(collect([Path(folder) for folder in listed]))
