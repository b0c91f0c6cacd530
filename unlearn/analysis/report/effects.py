"""Differences between the chosen settings: what perturbation costs, and what RNA changes.

What perturbation costs has an interval over seeds (Student's t). What RNA changes has one over seeds and questions
(`two_way`). Of a single seed, both are over questions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unlearn.analysis.collect import Run
from unlearn.analysis.compare import compare_answers, differences_by_task, differing_questions
from unlearn.analysis.frames import MEAN
from unlearn.analysis.report.choose import Chosen, family
from unlearn.analysis.report.material import Material
from unlearn.analysis.settings import Setting
from unlearn.records.names import text_role
from unlearn.statistics.intervals import crossed, two_way

ROLES = ("retain", "near", "forget", text_role("retain"), text_role("forget"))
OTHERWISE = "of another model, trained on other texts, or asked other tasks"


@dataclass(frozen=True)
class Effect:
    """A difference with its 95 % interval, in points or nats a token; or, in `why_not`, why there is none."""

    method: str
    role: str
    name: str
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0
    why_not: str = ""

    @property
    def text(self) -> str:
        """`-3.0 (-5.1 .. -0.9)`, marked q if the interval is over questions."""
        digits = 3 if self.role.endswith("_text") else 1
        if math.isnan(self.difference):
            return ""
        interval = "" if math.isnan(self.low) else f" ({self.low:+.{digits}f} .. {self.high:+.{digits}f})"
        return f"{self.difference:+.{digits}f}{interval}{' q' if self.seeds == 1 else ''}"


def effects(m: Material) -> Iterator[Effect]:
    """What perturbation costs each chosen setting, and what RNA changes of default and perturbed queries."""
    asked = set(m.means["role"])
    for choice in m.chosen:
        for role in [role for role in ROLES if role in asked]:
            for setting, rna in choice.settings.items():
                effect = _of_perturbation(m, choice, role, f"perturbation, {'with' if rna else 'without'} RNA", setting)
                if effect is not None:
                    yield effect
            for query in ("default", "perturbed"):
                effect = _of_rna(m, choice, role, f"RNA, {query}", query)
                if effect is not None:
                    yield effect


def _of_perturbation(m: Material, choice: Chosen, role: str, name: str, setting: Setting) -> Effect | None:
    """The scores have the difference of each run, paired by question."""
    means = m.means
    rows = means[(means["setting"] == setting) & (means["model"] == "unlearned") & (means["task"] == MEAN)]
    rows = rows[(rows["role"] == role) & (rows["query"] == "perturbed") & (rows["against"] == "default")]
    rows = rows[rows["measure"].isin(["acc", "nats"])]
    if rows.empty:
        return None
    row = rows.iloc[0]
    return Effect(choice.method, role, name, row["mean"], row["low"], row["high"], int(row["seeds"]))


def _of_rna(m: Material, choice: Chosen, role: str, name: str, query: str) -> Effect | None:
    if choice.plain is None or choice.rna is None:
        why = _why_alone(m, choice, role, query)
        return None if why is None else Effect(choice.method, role, name, why_not=why)
    before, after = m.runs_of(choice.plain), m.runs_of(choice.rna)
    common = sorted(before.keys() & after.keys())
    if not common:
        why = f"no seed of both: {', '.join(map(str, before))} and {', '.join(map(str, after))}"
        return Effect(choice.method, role, name, why_not=why)
    for seed in common:
        why = differing_questions(before[seed], after[seed], query, role)
        if why is not None:
            return Effect(choice.method, role, name, why_not=why)
    if len(common) == 1:
        return _of_one_seed(m, before[common[0]], after[common[0]], choice, role, name, query)
    parts = _differences(m, [(before[seed], after[seed]) for seed in common], role, query)
    return Effect(choice.method, role, name, *two_way(parts), seeds=len(parts[0])) if parts else None


def _differences(m: Material, pairs: Sequence[tuple[Run, Run]], role: str, query: str) -> list[np.ndarray]:
    """For each task, float [seeds, questions]: the second run less the first one, in points or nats a token."""
    by_seed = []
    for a, b in pairs:
        with m.reading(b):
            by_seed.append(differences_by_task(a, b, role, query))
    factor = 1 if role.endswith("_text") else 100
    return [factor * part for part in crossed(by_seed)]


def _of_one_seed(m: Material, a: Run, b: Run, choice: Chosen, role: str, name: str, query: str) -> Effect | None:
    with m.reading(b):
        result = compare_answers(a, b).roles.get((role, query))
        if result is None:
            return None
        factor = 1 if role.endswith("_text") else 100
        difference, low, high = factor * result.difference, factor * result.low, factor * result.high
        return Effect(choice.method, role, name, difference, low, high, seeds=1)
    return None


def _why_alone(m: Material, choice: Chosen, role: str, query: str) -> str | None:
    """Why a choice has no counterpart, although settings exist that differ in RNA alone; None if there are none."""
    [(setting, rna)] = choice.settings.items()
    config = family(setting).config
    for run, other, nu in zip(m.runs, m.about["setting"], m.about["nu"], strict=True):
        if run.done and (nu == 0) == rna and family(other).config == config:
            first = next(iter(m.runs_of(setting).values()))
            return differing_questions(first, run, query, role) or OTHERWISE
    return None
