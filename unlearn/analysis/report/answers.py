"""What single questions, texts or inserted words say of a model: values by item, their means and weighted sums."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean

import numpy as np

from unlearn.analysis.collect import Run
from unlearn.analysis.report.material import Material
from unlearn.records.samples import Sample

# Task or corpus -> item (a fact, a question or a text) -> its value, or a weighted sum of such.
Answers = dict[str, dict[Hashable, float]]
Words = dict[str, dict[Hashable, str]]  # task or corpus -> item -> the word that was inserted into it
Places = dict[tuple[str, str, str], list[tuple[str, Sample]]]  # (role, query, model) -> samples, each with its task


def places(m: Material, run: Run) -> Places:
    """A run's samples; a group counts as one task."""
    samples: Places = {}
    with m.reading(run):
        groups = {(score.role, score.task): score.part_of for score in run.scores}
        for sample in run.samples():
            task = groups.get((sample.role, sample.task)) or sample.task
            samples.setdefault((sample.role, sample.query, sample.model), []).append((task, sample))
    return samples


def means(values: Iterable[tuple[str, Hashable, float]]) -> Answers:
    """Part -> item -> the mean of its values."""
    listed: dict[str, dict[Hashable, list[float]]] = {}
    for part, item, value in values:
        listed.setdefault(part, {}).setdefault(item, []).append(value)
    return {part: {item: fmean(of_item) for item, of_item in items.items()} for part, items in listed.items()}


def by_item(samples: Iterable[tuple[str, Sample]], value: Callable[[Sample], float | None]) -> Answers:
    """The samples' values where they have one; questions about one fact count as one item, which is their mean."""
    return means((task, sample.item, x) for task, sample in samples if (x := value(sample)) is not None)


def by_ngram(samples: Iterable[tuple[str, Sample]], value: Callable[[Sample], float | None]) -> Answers:
    """The samples' values by kind of query and n-gram: the mean over the questions or texts in which the n-gram is."""
    with_ngram = (sample for _, sample in samples if sample.inserted is not None)
    return means((sample.query, sample.inserted, x) for sample in with_ngram if (x := value(sample)) is not None)


def inserted_words(samples: Iterable[tuple[str, Sample]]) -> Words:
    """The word that was inserted into each item; empty if that is not known, or one item had several."""
    words: Words = {}
    for task, sample in samples:
        word = sample.inserted
        if word is None or words.setdefault(task, {}).setdefault(sample.item, word) != word:
            return {}
    return words


def by_word(values: Answers, words: Words) -> Answers:
    """The mean of each inserted word's items, where each task has several words; else the values as they are.

    Items with the same word are not independent: words do very unequal harm.
    """
    if not all(len({words.get(task, {}).get(item) for item in of} - {None}) > 1 for task, of in values.items()):
        return values
    return means((task, words[task][item], x) for task, of_task in values.items() for item, x in of_task.items())


def flat(values: Answers) -> dict[Hashable, float]:
    """The values of all tasks by item, where no two tasks have an item in common."""
    return {item: value for of_task in values.values() for item, value in of_task.items()}


def mean_of(values: Answers) -> float:
    """The mean over tasks."""
    return fmean(fmean(of_task.values()) for of_task in values.values())


def weighted(weights: Sequence[float], sides: Sequence[Mapping[str, Mapping[Hashable, float]]]) -> Answers:
    """The weighted sum, over the tasks and items that all sides have."""
    total: Answers = {}
    for task in [task for task in sides[0] if all(task in side for side in sides)]:
        items = [item for item in sides[0][task] if all(item in side[task] for side in sides)]
        if items:
            total[task] = {i: sum(w * side[task][i] for w, side in zip(weights, sides, strict=True)) for i in items}
    return total


def spread_by_item(samples: Iterable[tuple[str, Sample]]) -> Answers:
    """Values for each item whose mean is the standard deviation of all MaxLogits of a task.

    Formula: the standard deviation and its influence function, ((x - mean)^2 - variance) / 2 deviation (Hampel 1974,
    "The influence curve and its role in robust estimation", J. Am. Stat. Assoc. 69).
    """
    by_task: dict[str, list[tuple[str, Sample]]] = {}
    for task, sample in samples:
        if sample.maxlogits:
            by_task.setdefault(task, []).append((task, sample))
    values: Answers = {}
    for task, of_task in by_task.items():
        maxlogits = np.concatenate([sample.maxlogits or [] for _, sample in of_task])
        deviation = float(maxlogits.std())
        squares = by_item(of_task, partial(_square, center=float(maxlogits.mean())))[task]
        values[task] = {item: (deviation + x / deviation) / 2 if deviation else 0.0 for item, x in squares.items()}
    return values


def mean_maxlogit(sample: Sample) -> float | None:
    """The mean of a sample's MaxLogits, if it has any."""
    return fmean(sample.maxlogits) if sample.maxlogits else None


def _square(sample: Sample, center: float) -> float | None:
    return fmean((x - center) ** 2 for x in sample.maxlogits) if sample.maxlogits else None
