"""Paired differences of the chosen settings: the drop under perturbation, and the effect of RNA.

A role's difference is the mean over its tasks, as its accuracy is, then over seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from unlearn.analysis.collect import Run
from unlearn.analysis.compare import differing_questions
from unlearn.analysis.report.choose import Chosen, family
from unlearn.analysis.report.material import Material
from unlearn.evaluate.statistics import CONFIDENCE, NORMAL, paired

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


EFFECTS = {
    "perturbation, without RNA": ("plain", "plain", "default", "perturbed"),
    "perturbation, with RNA": ("rna", "rna", "default", "perturbed"),
    "RNA, default": ("plain", "rna", "default", "default"),
    "RNA, perturbed": ("plain", "rna", "perturbed", "perturbed"),
}  # name -> setting and query of one side, of the other
OTHERWISE = "of another model, trained on other texts, or asked other tasks"


def contrasts_of(m: Material, choice: Chosen, role: str) -> dict[str, Contrast]:
    """The EFFECTS for which both sides exist."""
    found = {}
    for name, (one, other, query, other_query) in EFFECTS.items():
        settings = getattr(choice, one), getattr(choice, other)
        if None not in settings:
            before, after = (m.runs_of(str(setting)) for setting in settings)
            found[name] = _contrast(m, before, after, role, query, other_query)
        elif one != other and (why := _why_alone(m, choice, query)) is not None:
            found[name] = Contrast(why_not=why)
    return found


def _why_alone(m: Material, choice: Chosen, query: str) -> str | None:
    """Why a choice has no counterpart, although settings exist that differ in RNA alone; None if there are none."""
    [(setting, rna)] = choice.settings.items()
    configuration, _ = json.loads(family(setting))
    for run, other, nu in zip(m.runs, m.about["setting"], m.about["nu"], strict=True):
        if run.done and (nu == 0) == rna and json.loads(family(other))[0] == configuration:
            [own, *_] = m.runs_of(setting).values()
            return differing_questions(own, run, query) or OTHERWISE
    return None


def _contrast(
    m: Material, a: Mapping[int, Run], b: Mapping[int, Run], role: str, query_a: str, query_b: str
) -> Contrast:
    """Compare runs b in one query with runs a in another, seed by seed."""
    common = sorted(a.keys() & b.keys())
    if not common:
        return Contrast(why_not=f"no seed of both: {', '.join(map(str, a))} and {', '.join(map(str, b))}")
    pairs = []
    for seed in common:
        why = differing_questions(a[seed], b[seed], query_a, role) if query_a == query_b else None
        if why is not None:
            return Contrast(why_not=why)
        sides = answers(m, a[seed], role, query_a), answers(m, b[seed], role, query_b)
        if all(sides):
            pairs.append(sides)
    if not pairs:
        return Contrast(why_not="no answers of both are there (samples.parquet)")
    return contrast(pairs)


def answers(m: Material, run: Run, role: str, query: str, model: str = "unlearned") -> Answers:
    """Which questions a run's "unlearned" or "base" model answered correctly, by task; a group counts as one task."""
    found: Answers = {}
    with m.reading(run):
        groups = {score.task: score.part_of for score in run.scores if score.role == role}
        for sample in run.samples():
            if (sample.model, sample.role, sample.query) == (model, role, query) and sample.correct is not None:
                task = groups.get(sample.task) or sample.task
                found.setdefault(task, {})[sample.task, sample.id] = float(sample.correct)
    return found


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
    mean = float(np.mean(values))
    if len(values) < 2:
        return Contrast(mean, seeds=len(values))
    error = float(stats.sem(values))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, len(values) - 1)) if error else float(mean == 0)
    return Contrast(mean, seeds=len(values), seeds_low=mean - half, seeds_high=mean + half, seeds_p=p)
