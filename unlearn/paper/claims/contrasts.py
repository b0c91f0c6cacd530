"""Differences of accuracy, paired by question, over the seeds of two settings.

A role's difference is the mean over its tasks, as its accuracy is, then over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from unlearn.analysis.collect import Run
from unlearn.analysis.frames import mean_interval
from unlearn.analysis.report.material import Material
from unlearn.evaluation.statistics import NORMAL, paired

# Task -> (its part, question) -> whether it is right, or a weighted sum of such.
Answers = dict[str, dict[tuple[str, int], float]]


@dataclass(frozen=True)
class Contrast:
    """A difference in points with intervals over questions and over seeds; or, in `why_not`, why there is none."""

    difference: float = math.nan
    low: float = math.nan  # over questions: of these very models
    high: float = math.nan
    p: float = math.nan
    questions: int = 0
    seeds: int = 0
    seeds_low: float = math.nan  # over seeds: of the method
    seeds_high: float = math.nan
    seeds_p: float = math.nan
    why_not: str = ""


def answers(m: Material, run: Run, role: str, query: str, model: str = "unlearned") -> Answers:
    """Which questions a run's "unlearned" or "base" model answered correctly, by task; a group counts as one task."""
    right: Answers = {}
    with m.reading(run):
        groups = {score.task: score.part_of for score in run.scores if score.role == role}
        for sample in run.samples():
            if (sample.model, sample.role, sample.query) == (model, role, query) and sample.correct is not None:
                task = groups.get(sample.task) or sample.task
                right.setdefault(task, {})[sample.task, sample.id] = float(sample.correct)
    return right


def contrast(pairs: Sequence[tuple[Answers, Answers]]) -> Contrast:
    """Compare a pair of answers for each seed, over the questions that all seeds have.

    Over questions: of one seed and one task the bootstrap interval and McNemar's exact test; else a normal interval and
    test from each question's mean over seeds, tasks taken as independent. Over seeds: Student's t.
    """
    tasks = [t for t in pairs[0][0] if all(t in side for pair in pairs for side in pair)]
    questions = {t: sorted(set.intersection(*(set(side[t]) for pair in pairs for side in pair))) for t in tasks}
    questions = {task: listed for task, listed in questions.items() if listed}
    if not questions:
        return Contrast(why_not="no question was asked of both")
    # Task -> differences [seeds, questions].
    differences = {
        task: np.array([[float(b[task][q]) - float(a[task][q]) for q in listed] for a, b in pairs])
        for task, listed in questions.items()
    }
    by_seed = np.mean([d.mean(axis=1) for d in differences.values()], axis=0)
    difference, count = float(by_seed.mean()), sum(map(len, questions.values()))
    if len(pairs) == len(questions) == 1:
        [(task, listed)] = questions.items()
        before, after = ([bool(side[task][q]) for q in listed] for side in pairs[0])
        r = paired(before, after)
        low, high, p = r.low, r.high, r.p
    else:
        errors = [stats.sem(d.mean(axis=0)) if d.shape[1] > 1 else 0.0 for d in differences.values()]
        error = math.hypot(*errors) / len(errors)
        low, high = difference - NORMAL * error, difference + NORMAL * error
        p = float(2 * stats.norm.sf(abs(difference) / error)) if error else float(difference == 0)
    spread = mean_over_seeds(list(100 * by_seed))
    return replace(spread, low=100 * low, high=100 * high, p=p, questions=count)


def mean_over_seeds(values: Sequence[float]) -> Contrast:
    """The mean of a value for each seed, with interval and p of Student's t; of one seed, without them."""
    mean, low, high = mean_interval(values)
    if len(values) < 2:
        return Contrast(mean, seeds=len(values))
    error = float(stats.sem(values))
    p = float(2 * stats.t.sf(abs(mean) / error, len(values) - 1)) if error else float(mean == 0)
    return Contrast(mean, seeds=len(values), seeds_low=low, seeds_high=high, seeds_p=p)
