"""The few figures that say what a model retains and what it has forgotten."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from unlearn.records.names import text_role
from unlearn.records.scores import Score, role_means

SHOWN = (("retain", "default"), ("retain", "perturbed"), ("forget", "default"))  # role, query


@dataclass(frozen=True)
class Figure:
    """The mean over the tasks of a role in one kind of query, of the unlearned model and of its base model.

    `acc` is a share of 1. `nats` is the loss of held-out texts, in nats a token: it rises when something is forgotten.
    """

    measure: Literal["acc", "nats"]
    unlearned: float
    base: float | None

    @property
    def loss(self) -> float:
        """How much worse the unlearned model is than its base model. Below 0: better; without a base model: NaN."""
        if self.base is None:
            return float("nan")
        return self.base - self.unlearned if self.measure == "acc" else self.unlearned - self.base

    def text(self, value: float) -> str:
        """A value, or a standard error, of this measure: percent, or nats."""
        return f"{100 * value:.1f}" if self.measure == "acc" else f"{value:.2f}"


def figure_name(role: str, query: str) -> str:
    """The name of the figure of a role, or of its held-out texts, in a kind of query."""
    role = role.removesuffix(text_role(""))
    return role if query == "default" else f"{role} {query}"


def headline(scores: Iterable[Score]) -> dict[str, Figure]:
    """The figures of `SHOWN`, named "retain", "retain perturbed", "forget"; those that were not measured are left out.

    Accuracies on the tasks of a role or, where it has none, the loss of its held-out texts.
    """
    rows = list(scores)
    figures: dict[str, Figure] = {}
    measures: tuple[tuple[Literal["acc", "nats"], str], ...] = (("acc", ""), ("nats", "_text"))
    for role, query in SHOWN:
        name = figure_name(role, query)
        for measure, suffix in measures:
            place = (f"{role}{suffix}", query)
            unlearned = role_means(rows, measure).get(place)
            if unlearned is not None and name not in figures:
                base = role_means(rows, measure, model="base").get(place)
                figures[name] = Figure(measure, unlearned, base)
    return figures
