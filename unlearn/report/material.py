"""What figures and tables are made of: runs, their accuracies, means over seeds, and what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from unlearn.report.choose import ROLE_MEAN, Chosen, choose
from unlearn.report.collect import Run
from unlearn.report.frames import METHODS, accuracy_frame, flat, is_number, over_seeds, run_frame


@dataclass(frozen=True)
class Material:
    """See the fields' frames in `unlearn.report.frames`."""

    runs: Sequence[Run]
    about: pd.DataFrame
    accuracies: pd.DataFrame
    means: pd.DataFrame
    chosen: Sequence[Chosen]
    paper: bool  # lay the paper's numbers beside

    @property
    def unlearned(self) -> pd.DataFrame:
        """Roles' accuracies of unlearned models."""
        return self._of("unlearned")

    @property
    def base(self) -> pd.DataFrame:
        """Those of the base model: a row for each role and query."""
        base = self._of("base")
        return base.drop_duplicates(["role", "query"]) if len(base) else base

    def _of(self, model: str) -> pd.DataFrame:
        means = self.means
        return means[(means["model"] == model) & (means["task"] == ROLE_MEAN)] if len(means) else means

    @property
    def labels(self) -> dict[str, str]:
        """Chosen settings and what they are called."""
        return {setting: label for choice in self.chosen for setting, label in choice.settings.items()}

    def runs_of(self, setting: str) -> list[Run]:
        """The finished runs of a setting, by seed."""
        rows = self.about[(self.about["setting"] == setting) & (self.about["status"] == "done")]
        return [self.runs[number] for number in rows.sort_values("seed")["number"]]

    @property
    def choice(self) -> str:
        """How the settings that stand for a method were chosen, in words."""
        told = [f"{c.method} {c.coefficient}" + (f", ν = {c.nu:g}" if c.nu is not None else "") for c in self.chosen]
        best = " The best of several, on the questions shown." if any(c.of > 1 for c in self.chosen) else ""
        return f"Settings: {'; '.join(told)}.{best}"


def _order(run: Run) -> tuple[object, ...]:
    """Methods as the paper names them, then by coefficient, nu and seed."""
    keys = flat(run.identity)
    method = str(keys.get("method.name", ""))
    place = list(METHODS).index(method) if method in METHODS else len(METHODS)
    numbers = [float(v) for k, v in sorted(keys.items()) if k.startswith("method.") and is_number(v)]
    return place, method, numbers, keys.get("rna.nu", 0.0), keys.get("seed", 0), str(run.folder)


def gather(runs: Sequence[Run], *, paper: bool = False) -> Material:
    """All frames of some runs."""
    runs = sorted(runs, key=_order)
    about = run_frame(runs)
    accuracies = accuracy_frame(runs, about)
    means = over_seeds(accuracies, about)
    return Material(runs, about, accuracies, means, choose(means), paper)
