"""The data of figures and tables: runs, their scores, means over seeds, and the chosen settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from unlearn.analysis.collect import Run
from unlearn.analysis.frames import MEAN, over_seeds, scores_of_runs
from unlearn.analysis.report.choose import Chosen, choose
from unlearn.analysis.searches import FoundSearch
from unlearn.analysis.settings import METHODS, Setting, missing_seeds, run_frame
from unlearn.arguments import is_number
from unlearn.errors import describe
from unlearn.records.scores import flat, not_finite

LOSSES = ("forget_loss", "retain_loss")  # of the last logged step


@dataclass(frozen=True)
class Material:
    """Runs and the frames of `unlearn.analysis.settings` and `unlearn.analysis.frames`.

    Figures that compare methods are of one world, which is one model and what it was asked: that of most runs.
    """

    runs: Sequence[Run]
    about: pd.DataFrame
    scores: pd.DataFrame
    means: pd.DataFrame
    world: str
    chosen: Sequence[Chosen]
    searches: Sequence[FoundSearch] = ()
    problems: dict[str, str] = field(default_factory=dict)  # run -> what could not be read
    not_finite: dict[str, str] = field(default_factory=dict)  # run -> under which attack answers were not finite

    def means_of(self, measure: str, *, model: str = "unlearned", against: str = "") -> pd.DataFrame:
        """The roles' means over seeds of a measure, of all worlds; of the base model those of this world, once."""
        means = self.means
        rows = means[
            (means["model"] == model)
            & (means["measure"] == measure)
            & (means["against"] == against)
            & (means["task"] == MEAN)
        ]
        return rows[rows["world"] == self.world].drop_duplicates(["role", "query"]) if model == "base" else rows

    @property
    def shown(self) -> dict[Setting, tuple[str, bool]]:
        """Chosen settings: setting -> (method, whether with RNA)."""
        return {setting: (c.method, rna) for c in self.chosen for setting, rna in c.settings.items()}

    def runs_of(self, setting: Setting) -> dict[int, Run]:
        """The finished runs of a setting: seed -> run; of several of a seed, the one asked in most kinds of query."""
        return self._by_setting.get(setting, {})

    @cached_property
    def _by_setting(self) -> dict[Setting, dict[int, Run]]:
        about = self.about
        rows = zip(about["setting"], about["seed"], self.runs, strict=True)
        done = [(setting, seed, run) for setting, seed, run in rows if run.done and pd.notna(seed)]
        runs: dict[Setting, dict[int, Run]] = {}
        for setting, seed, run in sorted(done, key=lambda row: (row[1], -len(row[2].queries))):
            runs.setdefault(setting, {}).setdefault(int(seed), run)
        return runs

    @contextmanager
    def reading(self, run: Run) -> Iterator[None]:
        """Record an error in reading a run inside the block, and go on with the others."""
        try:
            yield
        except Exception as error:  # an incomplete line, table or file: whatever a reader raises
            self.problems.setdefault(str(run.folder), describe(error))

    @property
    def lacking(self) -> dict[Setting, str]:
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
        finished = self.about[self.about["status"] == "done"]
        kinds = {
            "models": {f"{r.identity['model']['name']} ({str(r.record['inputs'].get('model'))[:8]})" for r in done},
            "sets of training texts": set(finished["corpora"]),
            "question sets": set(finished["questions"]),
            "code versions": {str(code.get("commit") or "unknown")[:10] for code in codes},
        }
        warnings = []
        for what, values in kinds.items():
            if len(values) > 1:
                listed = [*sorted(values)[:5], *(["..."] if len(values) > 5 else [])]
                warnings.append(f"These runs are of {len(values)} {what}: {'; '.join(listed)}.")
        broken = sum(bool(not_finite(run.scores)) for run in done)
        if broken:
            warnings.append(
                f"{broken} of {len(done)} runs have answers that are not finite (NaN or infinite). Tasks with such "
                'answers have no figure; the column "not finite" counts them.'
            )
        changed = sum(bool(code.get("changed")) for code in codes)
        if changed:
            warnings.append(f"{changed} of {len(done)} runs were made by code with uncommitted changes.")
        repeated = int(finished.duplicated(["setting", "seed"]).sum())
        if repeated:
            warnings.append(f"{repeated} runs repeat a seed of the same setting; each seed counts once.")
        alike = self._alike_over_seeds()
        if alike:
            warnings.append(
                f"{alike} settings have the same losses with several seeds, as nothing in them is drawn at random: the "
                "seeds are one run, and their intervals over seeds mean nothing. data.shuffle=true draws the order."
            )
        return warnings + [f"Search {s.folder.name} is not shown: {s.problem}" for s in self.searches if s.problem]

    def _alike_over_seeds(self) -> int:
        """How many settings ended with the same losses for two seeds."""
        losses: dict[Setting, dict[int, tuple[float, ...]]] = {}
        for run, (setting, seed) in zip(self.runs, self.about[["setting", "seed"]].to_numpy(), strict=True):
            ended = tuple(run.training[name] for name in LOSSES if name in run.training)
            if run.done and ended and pd.notna(seed):
                losses.setdefault(setting, {})[seed] = ended
        return sum(len(set(of.values())) < len(of) for of in losses.values())


def _order(run: Run) -> tuple[object, ...]:
    """Methods as the paper names them, then by coefficient, nu and seed."""
    keys = flat(run.identity, ".")
    method = str(keys.get("method.name", ""))
    place = list(METHODS).index(method) if method in METHODS else len(METHODS)
    numbers = [float(v) for k, v in sorted(keys.items()) if k.startswith("method.") and is_number(v)]
    return place, method, numbers, keys.get("rna.nu", 0.0), keys.get("seed", 0), str(run.folder)


def gather(runs: Sequence[Run], searches: Sequence[FoundSearch] = ()) -> Material:
    """Make all frames of these runs."""
    runs = sorted(runs, key=_order)
    about, scores = run_frame(runs), scores_of_runs(runs)
    means = over_seeds(scores, about)
    worlds = about[about["world"] != ""]["world"].value_counts()
    world = str(worlds.index[0]) if len(worlds) else ""
    of_world = about[about["world"] == world] if world else about.iloc[:0]
    chosen = choose(means[means["world"] == world], of_world)
    return Material(runs, about, scores, means, world, chosen, searches)
