"""What a trial is judged by: named figures of a run, each the unlearned model's less the base model's.

docs/search.md explains the names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unlearn.config.schema import Config
from unlearn.errors import UserError, nearest
from unlearn.records.names import is_asked, text_role
from unlearn.records.scores import Score, read_scores, role_means, why_not_finite

Direction = Literal["max", "min"]


@dataclass(frozen=True)
class Figure:
    """A figure: the measure of a role in a kind of query, less that in `without`; whether large or small is good."""

    measure: Literal["nats", "acc"]
    good: Direction
    role: str
    query: str = "default"
    without: str | None = None

    @property
    def unit(self) -> str:
        """Nats a token, or points of accuracy."""
        return "nats" if self.measure == "nats" else "points"

    def of(self, scores: Iterable[Score]) -> float | None:
        """The figure; None if it was not measured, or not of both models."""
        rows = list(scores)
        values = [self._of(rows, model) for model in ("unlearned", "base")]
        if values[0] is None or values[1] is None:
            return None
        return (values[0] - values[1]) * (100 if self.measure == "acc" else 1)

    def _of(self, scores: list[Score], model: str) -> float | None:
        means = role_means(scores, self.measure, model=model)
        value = means.get((self.role, self.query))
        if self.without is None or value is None:
            return value
        other = means.get((self.role, self.without))
        return None if other is None else value - other


RETAIN_TEXT, FORGET_TEXT = text_role("retain"), text_role("forget")
FIGURES = {
    "forget_text": Figure("nats", "max", FORGET_TEXT),
    "retain_text": Figure("nats", "min", RETAIN_TEXT),
    "forget_token_cost": Figure("nats", "min", RETAIN_TEXT, "perturbed", without="default"),
    "forget_accuracy": Figure("acc", "min", "forget"),
    "retain_accuracy": Figure("acc", "max", "retain"),
    "perturbed_accuracy": Figure("acc", "max", "retain", "perturbed"),
}
_NOT_FINITE = re.compile(r"became -?(nan|inf)|NaN or infinite")  # what training and evaluation say


def read_figures(folder: Path, names: Collection[str]) -> dict[str, float]:
    """These figures of a finished run. Raises UserError if one of them is missing."""
    scores = read_scores(folder)
    figures = {name: FIGURES[name].of(scores) for name in names}
    measured = {name: value for name, value in figures.items() if value is not None}
    if lacking := figures.keys() - measured.keys():
        why = why_not_finite(scores) or "its questions or texts have no such measure."
        raise UserError(f"{', '.join(sorted(lacking))}: {why}")
    return measured


def measured(config: Config) -> list[str]:
    """The figures that the configuration's evaluation measures."""
    evaluation = config.eval
    return [
        name
        for name, figure in FIGURES.items()
        if evaluation.roles.get(figure.role)
        and all(
            query in evaluation.queries and is_asked(evaluation.asked_of, query, figure.role)
            for query in {figure.query, figure.without or figure.query}
        )
    ]


def check_names(key: str, names: Collection[str], config: Config | None = None) -> None:
    """Raise UserError for names that are not known or, with a configuration, that its evaluation does not measure."""
    allowed: Collection[str] = FIGURES if config is None else measured(config)
    for name in names:
        if name not in FIGURES:
            raise UserError(f"{key}: {name} is unknown.{nearest(name, FIGURES)} Allowed: {', '.join(FIGURES)}.")
        if config is not None and name not in allowed:
            measures = ", ".join(allowed) or "nothing"
            raise UserError(f"{key}: eval={config.eval.name} does not measure {name}. It measures: {measures}.")


def defaults(config: Config) -> tuple[dict[str, Direction], dict[str, float]]:
    """Objectives and bounds where none are set: of held-out texts, where they are measured, else of questions.

    Without a bound on forgetting, the front would begin with trials that forgot nothing, which no other one beats.
    """
    names = measured(config)
    objectives: dict[str, Direction]
    if "forget_text" in names:
        objectives, bounds = (
            {"forget_text": "max", "forget_token_cost": "min"},
            {"retain_text": 0.05, "forget_text": 1.0},
        )
    else:
        objectives, bounds = (
            {"forget_accuracy": "min", "perturbed_accuracy": "max"},
            {"retain_accuracy": -5.0, "forget_accuracy": -20.0},
        )
    objectives = {name: direction for name, direction in objectives.items() if name in names}
    if not objectives:
        raise UserError(f"eval={config.eval.name} measures nothing that a search could judge by: {', '.join(FIGURES)}.")
    return objectives, {name: bound for name, bound in bounds.items() if name in names}


def better(name: str, value: float) -> float:
    """A figure with the sign by which larger is better."""
    return value if FIGURES[name].good == "max" else -value


def violation(name: str, value: float, bound: float) -> float:
    """By how much a figure is beyond its bound, at most or at least as is good for it; not above 0: it is kept."""
    return value - bound if FIGURES[name].good == "min" else bound - value


def mean_or_worst(values: Mapping[str, list[float]], of: Literal["mean", "worst"]) -> dict[str, float]:
    """Of the seeds' values: one for each figure."""
    worst = {name: min(v) if FIGURES[name].good == "max" else max(v) for name, v in values.items()}
    return worst if of == "worst" else {name: sum(v) / len(v) for name, v in values.items()}


def says_not_finite(error: str) -> bool:
    """Whether an error of a run says that its training or its answers were not finite."""
    return _NOT_FINITE.search(error) is not None
