"""Runs compared at equal forgetting: a run with RNA with what runs without it have where they forgot as much.

Runs without RNA make a curve, of a measure over forgetting. It is read at the level of the run with RNA, between the
two that have forgotten just less and just as much or more.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Generic, TypeVar

import pandas as pd

from unlearn.analysis.report.answers import Answers, mean_of, weighted
from unlearn.paper.claims.text_measures import by_forget_token

UNIT = "nats a token"
# What moves a run along the curve of its setting, to more or less forgetting, and RNA. Other ways: `rivals`.
STRENGTH = ("rna", "method.c", "method.beta", "loss.alpha")
WIDEST = 2.0  # nats a token between two runs, across which a measure is interpolated
UNMATCHED = f"no run with RNA has forgotten as much as two without RNA at most {WIDEST:g} {UNIT} apart"
FORGOTTEN_PART = "forgotten: "  # the beginning of the names of parts that are forgotten texts
T = TypeVar("T")  # a run


@dataclass(frozen=True)
class Match(Generic[T]):
    """A run, and the two of a curve that have forgotten just less, and as much or more."""

    run: T
    below: T
    above: T
    gap: float  # between the two, in forgetting
    part: float  # of the gap, from `below` to the run

    @property
    def weights(self) -> tuple[float, float, float]:
        """Of the run and the two, in what the run has more than the curve at its level."""
        return 1.0, self.part - 1, -self.part

    def of(self, value: Callable[[T], Any]) -> list[Any]:
        """A value of the three."""
        return [value(self.run), value(self.below), value(self.above)]

    def less_curve(self, measure: Callable[[T], Answers]) -> Answers:
        """What the run has more of a measure than the curve, for each item."""
        return weighted(self.weights, self.of(measure))

    def moved(self, measure: Callable[[T], float], forgotten: Callable[[T], Answers]) -> Answers:
        """What each forgotten text adds to the difference; their mean is 0.

        Other texts to forget would move the point at which the curve is read, by how much the run and the curve differ
        on each, times the curve's slope there (the delta method).
        """
        slope = (measure(self.above) - measure(self.below)) / self.gap
        return weighted([-slope * weight for weight in self.weights], self.of(forgotten))


def match_of(run: T, curve: Sequence[T], level: Callable[[T], float], widest: float) -> Match[T] | None:
    """A run and its neighbours in a curve, which is sorted by `level`.

    None if it has forgotten less or more than all of these; or if the two are more than `widest` apart, unless it has
    forgotten as much as one.
    """
    levels, own = [level(point) for point in curve], level(run)
    place = bisect_left(levels, own)
    if not 0 < place < len(curve):
        return None
    low, high = levels[place - 1], levels[place]
    if not (high - low <= widest or own == high):
        return None
    return Match(run, curve[place - 1], curve[place], high - low, (own - low) / (high - low))


def with_forgotten(measured: Answers, moved: Answers) -> Answers:
    """Parts whose mean is that of `measured`, and in which forgotten texts (`Match.moved`) are items, too."""
    of_forgotten = {f"{FORGOTTEN_PART}{task}": of_task for task, of_task in moved.items()}
    count = len(measured) + len(of_forgotten)
    return {
        task: {item: value * count / len(kind) for item, value in of_task.items()}
        for kind in (measured, of_forgotten)
        for task, of_task in kind.items()
    }


def matches(rows: pd.DataFrame) -> Iterator[Match[pd.Series]]:
    """Each run with RNA of a method's rows (`run_rows`), with its neighbours of the same seed and without RNA.

    These differ from it in nothing but STRENGTH, and are at most WIDEST nats a token apart.
    """
    alike = rows["setting"].map(lambda setting: setting.without(*STRENGTH))
    for _, group in rows.groupby(["seed", alike], sort=False):
        plain = [row for _, row in group[group["nu"] == 0].sort_values("level").iterrows()]
        for _, rna in group[group["nu"] > 0].iterrows():
            if match := match_of(rna, plain, itemgetter("level"), WIDEST):
                yield match


def at_equal_forgetting(rows: pd.DataFrame, measure: str) -> dict[int, Answers]:
    """For each seed of a method's runs with a match: a measure with RNA less that without, at equal forgetting.

    The mean over a seed's runs with RNA, for each text. The texts to forget are items, too.
    """
    differences: dict[int, list[Answers]] = {}
    for match in _alike(list(matches(rows.dropna(subset=["forgotten", measure])))):
        measured = by_forget_token(match.less_curve(itemgetter(measure)), match.run, measure)
        moved = match.moved(lambda row: mean_of(row[measure]), itemgetter("forgotten"))
        differences.setdefault(int(match.run["seed"]), []).append(with_forgotten(measured, moved))
    return {seed: weighted([1 / len(own)] * len(own), own) for seed, own in differences.items()}


def _alike(found: list[Match[pd.Series]]) -> list[Match[pd.Series]]:
    """The matches of the settings that have one in most seeds, of the seeds that all these have.

    Else seeds would be means over different nu.
    """
    seeds: dict[Any, set[int]] = {}
    for match in found:
        seeds.setdefault(match.run["setting"], set()).add(match.run["seed"])
    common = max(seeds.values(), key=len, default=set())
    return [match for match in found if seeds[match.run["setting"]] == common]
