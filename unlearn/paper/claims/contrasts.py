"""Weighted sums of accuracies, over the seeds and questions of several models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from unlearn.analysis.collect import Run
from unlearn.analysis.report.material import Material
from unlearn.statistics.intervals import crossed, over_seeds

# Task -> (its part, question) -> whether it is right, or a weighted sum of such.
Answers = dict[str, dict[tuple[str, int], float]]


@dataclass(frozen=True)
class Contrast:
    """The mean over seeds of a difference, with its 95 % interval (Student's t); or, in `why_not`, why there is none.

    `p` is over questions: it is about these very models.
    """

    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0
    p: float = math.nan
    why_not: str = ""


def answers(m: Material, run: Run) -> dict[tuple[str, str, str], Answers]:
    """(role, query, "unlearned" or "base") -> which questions were answered correctly; a group counts as one task."""
    right: dict[tuple[str, str, str], Answers] = {}
    with m.reading(run):
        groups = {(score.role, score.task): score.part_of for score in run.scores}
        for sample in run.samples():
            if sample.correct is not None:
                task = groups.get((sample.role, sample.task)) or sample.task
                of_place = right.setdefault((sample.role, sample.query, sample.model), {})
                of_place.setdefault(task, {})[sample.task, sample.id] = float(sample.correct)
    return right


def contrast(sums: Sequence[Answers]) -> Contrast:
    """The mean of each seed's sum of answers, in points: over the questions that all seeds have, tasks, and seeds.

    p is that of a normal test of each question's mean over seeds. Tasks are taken as independent.
    """
    by_task = crossed(sums)
    if not by_task:
        return Contrast(why_not="no question was asked of both")
    by_seed = np.mean([values.mean(axis=1) for values in by_task], axis=0)
    errors = [stats.sem(values.mean(axis=0)) if values.shape[1] > 1 else 0.0 for values in by_task]
    difference, error = float(by_seed.mean()), math.hypot(*errors) / len(errors)
    p = float(2 * stats.norm.sf(abs(difference) / error)) if error else float(difference == 0)
    return replace(mean_over_seeds(list(100 * by_seed)), p=p)


def mean_over_seeds(values: Sequence[float]) -> Contrast:
    """The mean of a value for each seed; of one seed, without an interval."""
    return Contrast(*over_seeds(values), seeds=len(values))
