"""Tests that belong to intervals, and their correction where many are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from unlearn.statistics.intervals import Interval

SMALLEST = 1e-12  # p-values below count as 0


def p_value(interval: Callable[[float], Interval], bound: float) -> float:
    """The two-sided test that belongs to an interval: that what it estimates is `bound`.

    Formula: one less the confidence at which an end of the interval touches the bound (duality of tests and intervals:
    Lehmann and Romano 2005, "Testing Statistical Hypotheses", section 3.5). So p is below 0.05 exactly where the 95 %
    interval does not hold the bound.

    Args:
        interval: confidence -> interval, which holds more with more confidence.
    """

    def excludes(p: float) -> bool:
        _, low, high = interval(1 - p)
        return not low <= bound <= high

    smaller, larger = np.log(SMALLEST), 0.0
    if excludes(SMALLEST):
        return 0.0
    for _ in range(40):
        middle = (smaller + larger) / 2
        smaller, larger = (smaller, middle) if excludes(float(np.exp(middle))) else (middle, larger)
    return float(np.exp(larger))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family of tests, corrected so that all those below 0.05 are right with a probability of 95 %.

    Design: any tests, however dependent. Formula: the smallest of m times m, the next one times m - 1, and so on, none
    below one before it (Holm 1979, "A simple sequentially rejective multiple test procedure", Scand. J. Stat. 6).
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(p) for p in corrected]
