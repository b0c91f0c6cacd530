"""The data of figures and tables: runs, their accuracies, means over seeds, and the chosen settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pandas as pd

from unlearn.analysis.collect import Run
from unlearn.analysis.report.choose import Chosen, choose
from unlearn.analysis.report.frames import (
    MEAN,
    METHODS,
    accuracy_frame,
    flat,
    missing_seeds,
    over_seeds,
    repeated_seeds,
    run_frame,
)
from unlearn.arguments import is_number
from unlearn.errors import describe

LOSSES = ("forget_loss", "retain_loss")  # of the last logged step


@dataclass(frozen=True)
class Material:
    """See the fields' frames in `unlearn.analysis.report.frames`.

    Figures that compare methods are of one world, which is one model and what it was asked: that of most runs.
    """

    runs: Sequence[Run]
    about: pd.DataFrame
    accuracies: pd.DataFrame
    means: pd.DataFrame
    world: str
    chosen: Sequence[Chosen]
    problems: dict[str, str] = field(default_factory=dict)  # run -> what could not be read

    @property
    def unlearned(self) -> pd.DataFrame:
        """Roles' accuracies of unlearned models, of all worlds."""
        return self._of("unlearned")

    @property
    def base(self) -> pd.DataFrame:
        """Those of this world's base model: a row for each role and query."""
        base = self._of("base")
        return base[base["world"] == self.world].drop_duplicates(["role", "query"]) if len(base) else base

    def _of(self, model: str) -> pd.DataFrame:
        means = self.means
        return means[(means["model"] == model) & (means["task"] == MEAN)] if len(means) else means

    @property
    def standing(self) -> dict[str, tuple[str, bool]]:
        """Chosen settings: setting -> (method, whether with RNA)."""
        return {setting: (c.method, rna) for c in self.chosen for setting, rna in c.settings.items()}

    def runs_of(self, setting: str) -> dict[int, Run]:
        """The finished runs of a setting: seed -> run; of several of a seed, the one asked in most kinds of query."""
        rows = self.about[(self.about["setting"] == setting) & (self.about["status"] == "done")]
        rows = rows.assign(asked=[len(self.runs[number].queries) for number in rows["number"]])
        rows = rows.sort_values(["seed", "asked"], ascending=[True, False], kind="stable").drop_duplicates("seed")
        return {int(seed): self.runs[number] for seed, number in zip(rows["seed"], rows["number"], strict=True)}

    @contextmanager
    def reading(self, run: Run) -> Iterator[None]:
        """Record an error in reading a run inside the block, and go on with the others."""
        try:
            yield
        except Exception as error:  # an incomplete line, table or file: whatever a reader raises
            self.problems.setdefault(str(run.folder), describe(error))

    @property
    def lacking(self) -> dict[str, str]:
        """{setting: the seeds that it lacks, and why}."""
        return missing_seeds(self.about)

    @property
    def choice(self) -> str:
        """How the settings that stand for a method were chosen, in words."""
        best = " The best of several, on the questions shown." if any(c.of > 1 for c in self.chosen) else ""
        return f"Settings: {'; '.join(map(str, self.chosen))}.{best}{self.one_world}"

    @property
    def one_world(self) -> str:
        """That a figure is of one world, in words, if there are several."""
        worlds = self.about[self.about["world"] != ""]["world"].nunique()
        return f" Of the {worlds} combinations of model, questions and tasks, that of most runs." if worlds > 1 else ""

    @property
    def warnings(self) -> list[str]:
        """Warnings for the reader: runs of several models, data, questions or code versions."""
        done = [run for run in self.runs if run.done]
        codes = [run.record.get("code") or {} for run in done]
        seen = {
            "models": {f"{r.identity['model']['name']} ({str(r.record['inputs'].get('model'))[:8]})" for r in done},
            "sets of training texts": {_brief(r.record["inputs"].get("data")) for r in done},
            "question sets": {_brief({k: v for k, v in r.question_set.items() if v is not None}) for r in done},
            "sets of tasks": {_brief(r.roles) for r in done},
            "code versions": {str(code.get("commit") or "unknown")[:10] for code in codes},
            "versions of the results": {str(r.identity.get("results_version")) for r in done},
        }
        found = []
        for what, values in seen.items():
            if len(values) > 1:
                listed = [*sorted(values)[:5], *(["..."] if len(values) > 5 else [])]
                found.append(f"These runs are of {len(values)} {what}: {'; '.join(listed)}.")
        changed = sum(bool(code.get("changed")) for code in codes)
        if changed:
            found.append(f"{changed} of {len(done)} runs were made by code with uncommitted changes.")
        repeated = repeated_seeds(self.about)
        if repeated:
            found.append(f"{repeated} runs repeat a seed of the same setting; each seed counts once.")
        alike = self._alike_over_seeds()
        if alike:
            found.append(
                f"{alike} settings have the same losses with several seeds, as nothing in them is drawn at random: the "
                "seeds are one run, and their intervals over seeds mean nothing. data.shuffle=true draws the order."
            )
        return found

    def _alike_over_seeds(self) -> int:
        """How many settings ended with the same losses for two seeds."""
        losses: dict[str, dict[int, tuple[float, ...]]] = {}
        for run, (setting, seed) in zip(self.runs, self.about[["setting", "seed"]].values, strict=True):
            ended = tuple(v for k, v in sorted(run.training.items()) if k in LOSSES)
            if run.done and ended:
                losses.setdefault(setting, {})[seed] = ended
        return sum(len(set(of.values())) < len(of) for of in losses.values())


def _brief(value: object) -> str:
    """A nested value in a line, hashes cut short."""
    if isinstance(value, dict):
        return " ".join(f"{key}={_brief(v)}" for key, v in value.items())
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text[:8] if len(text) == 64 else text


def _order(run: Run) -> tuple[object, ...]:
    """Methods as the paper names them, then by coefficient, nu and seed."""
    keys = flat(run.identity)
    method = str(keys.get("method.name", ""))
    place = list(METHODS).index(method) if method in METHODS else len(METHODS)
    numbers = [float(v) for k, v in sorted(keys.items()) if k.startswith("method.") and is_number(v)]
    return place, method, numbers, keys.get("rna.nu", 0.0), keys.get("seed", 0), str(run.folder)


def gather(runs: Sequence[Run]) -> Material:
    """Make all frames of these runs."""
    runs = sorted(runs, key=_order)
    about = run_frame(runs)
    accuracies = accuracy_frame(runs, about)
    means = over_seeds(accuracies, about)
    worlds = about[about["world"] != ""]["world"].value_counts()
    world = str(worlds.index[0]) if len(worlds) else ""
    chosen = choose(means[means["world"] == world]) if len(means) else []
    return Material(runs, about, accuracies, means, world, chosen)
