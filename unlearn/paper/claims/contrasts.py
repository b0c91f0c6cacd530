"""Effects over seeds and items, with their intervals and tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from unlearn.analysis.report.answers import Answers
from unlearn.statistics.families import p_value
from unlearn.statistics.intervals import CONFIDENCE, Interval, crossed, over_seeds, two_way

ONE_SEED = "a single seed, which tells nothing of others"
OTHER_ITEMS = "its seeds have fewer than two questions, texts or inserted words in common"


@dataclass(frozen=True)
class Contrast:
    """An effect with its 95 % interval; or, in `why_not`, why there is none.

    `over` says what it is a mean over; `interval` gives the interval at other confidences.
    """

    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0
    over: str = ""
    why_not: str = ""
    interval: Callable[[float], Interval] | None = field(default=None, repr=False, compare=False)

    def p(self, bound: float) -> float:
        """Of the two-sided test that the effect is `bound`; NaN without an interval."""
        return math.nan if self.interval is None or math.isnan(self.low) else p_value(self.interval, bound)


def judged_by(interval: Callable[[float], Interval], seeds: int, over: str) -> Contrast:
    """The effect that a function of the confidence estimates."""
    return Contrast(*interval(CONFIDENCE), seeds=seeds, over=over, interval=interval)


def contrast(by_seed: Sequence[Answers], items: str, factor: float = 1.0) -> Contrast:
    """The mean of each seed's values times `factor`, over seeds and over the items that all seeds have (`two_way`).

    Args:
        items: what an item is, in the plural.
    """
    parts = [factor * part for part in crossed(by_seed)]
    if not parts or min(part.shape[1] for part in parts) < 2:
        return Contrast(why_not=OTHER_ITEMS)
    if len(by_seed) < 2:
        return Contrast(float(np.mean([part.mean() for part in parts])), seeds=1, why_not=ONE_SEED)
    count = sum(part.shape[1] for part in parts)
    return judged_by(partial(two_way, parts), len(by_seed), f"{len(by_seed)} seeds, {count} {items}")


def over_seeds_alone(values: Sequence[float]) -> Contrast:
    """The mean of one value for each seed, where records have no single questions or texts (`over_seeds`)."""
    if len(values) < 2:
        return Contrast(*over_seeds(values), seeds=len(values), why_not=ONE_SEED)
    over = f"{len(values)} seeds, of these very questions or texts"
    return judged_by(lambda confidence: over_seeds(values, confidence), len(values), over)


def over_ngrams(by_seed: Sequence[Answers], weights: Mapping[str, float], factor: float = 1) -> Contrast:
    """The weighted sum over kinds of query, over seeds and over n-grams, which are the items (`two_way`).

    Args:
        by_seed: for each seed, `by_ngram` of each kind of query in `weights`.
    """
    scales = {query: weight * len(weights) for query, weight in weights.items()}  # an effect is the mean over parts
    scaled = [{q: {ngram: scale * x for ngram, x in of[q].items()} for q, scale in scales.items()} for of in by_seed]
    return contrast(scaled, "n-grams", factor)
