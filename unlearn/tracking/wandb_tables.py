"""Results of an evaluation as curves and rows of tables in W&B: scores, questions, and values of MaxLogit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from unlearn.records.names import is_text_task, text_role
from unlearn.records.samples import Sample
from unlearn.records.scores import AGREEMENT, NOT_FINITE, Score, in_order, not_finite, role_means

Cell = str | float | int | bool | None
Row = list[Cell]
COMPARED = [f"{other}_{figure}" for other in ("base", "default") for figure in ("difference", "low", "high", "p")]
EVALUATION: list[str | int] = ["role", "task", "query", "model", "acc", "stderr", *COMPARED, "not finite"]
TEXTS: list[str | int] = [
    "role", "task", "query", "model", "nats per token", "stderr", "perplexity", "agreement", *COMPARED, "not finite",
]  # fmt: skip
QUESTIONS: list[str | int] = [
    "role", "task", "query", "question", "base correct", "unlearned correct", "base choice", "unlearned choice",
    "base margin", "unlearned margin",
]  # fmt: skip
MODELS = ("base", "unlearned")

# Summaries of curves in W&B, as NAME.min etc. Of other curves W&B keeps the last value, as NAME.
SUMMARIES = {
    "loss": "min,last",
    "forget_loss": "min,last",
    "retain_loss": "min,last",
    "gradient_norm": "max",
    "tokens_per_second": "mean",
    "memory_mb": "max",
    "forget_cosine": "max,last",
}


def evaluation_rows(scores: Sequence[Score]) -> list[Row]:
    """Rows of the table EVALUATION: each accuracy and its differences, or how many answers were not finite."""
    rows: list[Row] = [
        [*_place(score), score.value, score.stderr, *_compared(differences), 0]
        for score, differences in _values(scores, "acc")
    ]
    return rows + _without_figures(scores, EVALUATION, texts=False)


def text_rows(scores: Sequence[Score]) -> list[Row]:
    """Rows of the table TEXTS: each likelihood of held-out texts and its differences, or how many were not finite."""
    perplexities = {_place(score): score.value for score in scores if score.measure == "perplexity"}
    agreements = {_place(score): score.value for score, _ in _values(scores, AGREEMENT)}  # none of the base model
    rows: list[Row] = [
        [*_place(s), s.value, s.stderr, perplexities[_place(s)], agreements.get(_place(s)), *_compared(differences), 0]
        for s, differences in _values(scores, "nats")
    ]
    return rows + _without_figures(scores, TEXTS, texts=True)


def _without_figures(scores: Sequence[Score], columns: Sequence[str | int], *, texts: bool) -> list[Row]:
    """Rows with nothing but the number of answers that are not finite, of texts or of tasks."""
    counts = [s for s in not_finite(scores) if s.measure == NOT_FINITE and is_text_task(s.role, s.task) is texts]
    return [[*_place(s), *(None,) * (len(columns) - 5), int(s.value)] for s in counts]


def _place(score: Score) -> tuple[str, str, str, str]:
    return score.role, score.task, score.query, score.model


def _values(scores: Iterable[Score], measure: str) -> Iterator[tuple[Score, dict[str, Score]]]:
    """Each score of a measure, without parts of groups, and its differences: {"base": ..., "default": ...}."""
    by_place: dict[tuple[str, str, str, str], dict[str | None, Score]] = {}
    for score in in_order(scores):
        if score.measure == measure and score.part_of is None:
            by_place.setdefault(_place(score), {})[score.against] = score
    for of_place in by_place.values():
        value = of_place.pop(None, None)
        if value is not None:
            yield value, {against: score for against, score in of_place.items() if against is not None}


def _compared(differences: Mapping[str, Score]) -> Iterator[float | None]:
    """The cells of COMPARED."""
    for other in ("base", "default"):
        score = differences.get(other)
        yield from (None,) * 4 if score is None else (score.value, score.low, score.high, score.p)


def question_rows(samples: Iterable[Sample]) -> Iterator[Row]:
    """Rows of the table QUESTIONS: every task, query and question, both models side by side.

    A margin is the log-likelihood of the best option minus that of the second; None for tasks without options.
    """
    base: dict[tuple[str, str, str, int], Sample] = {}
    unlearned: dict[tuple[str, str, str, int], Sample] = {}
    for sample in samples:
        if sample.nats is None:  # no held-out text
            sides = base if sample.model == "base" else unlearned
            sides[sample.role, sample.task, sample.query, sample.id] = sample
    for question, after in unlearned.items():
        before = base[question]
        pairs = [
            (before.correct, after.correct),
            (before.choice, after.choice),
            (_margin(before), _margin(after)),
        ]
        yield [*question, *(value for pair in pairs for value in pair)]


def _margin(sample: Sample) -> float | None:
    ordered = sorted(sample.loglikelihoods or [])
    margin = ordered[-1] - ordered[-2] if len(ordered) > 1 else math.nan
    return margin if math.isfinite(margin) else None


def max_logit_values(scores: Iterable[Score], samples: Iterable[Sample]) -> dict[tuple[str, str, str], list[float]]:
    """(model, name of a task, group or role, query) -> the finite MaxLogits of all its questions that have some."""
    groups = {(score.role, score.task): score.part_of for score in scores}
    values: dict[tuple[str, str, str], list[float]] = {}
    for sample in samples:
        if sample.maxlogits is not None:
            names = (sample.task, groups.get((sample.role, sample.task)), sample.role)
            for name in filter(None, names):
                values.setdefault((sample.model, name, sample.query), []).extend(
                    filter(math.isfinite, sample.maxlogits)
                )
    return values


def role_figures(scores: Sequence[Score], model: str = "unlearned") -> dict[str, float]:
    """ROLE/QUERY/{acc,maxlogit_mean,nats,agreement,not_finite} of one model, robustness/drop and robustness/text_cost.

    `not_finite`, the number of answers that are not finite, is there if there are some.
    robustness/drop is the default minus the perturbed accuracy on retained knowledge. robustness/text_cost is the rise
    of the loss on retained texts, in nats per token, when a forget-token is inserted.
    """
    figures = {
        f"{role}/{query}/{measure}": value
        for measure in ("acc", "maxlogit_mean", "nats", AGREEMENT)
        for (role, query), value in role_means(scores, measure, model=model).items()
    }
    for count in not_finite(scores):
        if count.model == model:
            name = f"{count.role}/{count.query}/{count.measure}"
            figures[name] = figures.get(name, 0.0) + count.value
    if {"retain/default/acc", "retain/perturbed/acc"} <= figures.keys():
        figures["robustness/drop"] = figures["retain/default/acc"] - figures["retain/perturbed/acc"]
    costs = role_means(scores, "nats", model=model, against="default")
    if (text_role("retain"), "perturbed") in costs:
        figures["robustness/text_cost"] = costs[text_role("retain"), "perturbed"]
    return figures
