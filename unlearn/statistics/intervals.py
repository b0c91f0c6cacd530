"""95 % intervals of means and shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
NORMAL = 1.96  # standard errors of a normal distribution


class Interval(NamedTuple):
    """An estimate with the ends of its 95 % interval; NaN where there is none."""

    mean: float
    low: float
    high: float


def quantile(freedom: Any, confidence: float = CONFIDENCE) -> Any:
    """Student's t with so many degrees of freedom, an array's elementwise: half of an interval in standard errors."""
    return stats.t.isf((1 - confidence) / 2, freedom)


def over_seeds(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean over trainings that differ in their seed, of one value each.

    Estimand: the mean over all seeds, for these very questions, texts and forget-tokens. It says nothing of others: see
    `two_way`. Design: independent seeds, values near normal. Formula: Student's t. A single seed has no interval.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(quantile(len(values) - 1, confidence) * stats.sem(values))
    return Interval(mean, mean - half, mean + half)


def over_items(values: Sequence[float] | np.ndarray) -> Interval:
    """The mean of a value for each question or text, which may be skewed.

    Estimand: the mean over all such items, for these very models. Design: independent items. Formula: Student's t of
    Hall's transformation, which corrects for skewness (Hall 1992, "On the removal of skewness by transformation", J. R.
    Stat. Soc. B 54). Of symmetric values it is Student's t. A single item has no interval.
    """
    array = np.asarray(values, dtype=float)
    n, mean = len(array), float(array.mean())
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    if np.ptp(array) == 0:
        return Interval(mean, mean, mean)
    t, error = float(quantile(n - 1)), float(stats.sem(array))
    skewness = float(stats.skew(array, bias=False)) / math.sqrt(n) if n > 2 else 0.0
    return Interval(mean, mean - error * _unskewed(t, skewness), mean - error * _unskewed(-t, skewness))


def _unskewed(t: float, skewness: float) -> float:
    """The inverse of g(x) = x + s x^2 / 3 + s^2 x^3 / 27 + s / 6, with s the skewness of the mean."""
    if abs(skewness) < 1e-6:
        return t
    return float(3 / skewness * (np.cbrt(1 + skewness * (t - skewness / 6)) - 1))


def two_way(parts: Sequence[np.ndarray], confidence: float = CONFIDENCE) -> Interval:
    """The mean of values for each seed and item, the same items for all seeds: float [seeds, items] of each part.

    Estimand: the mean over parts (tasks, which count alike), over all such seeds and all such items. Design: seeds
    crossed with items, both drawn at random; parts have the same seeds and other items. Items that belong together
    (questions about one fact) are averaged before: facts are the items. Formula: with v_s the variance
    of the seeds' means over S, v_i that of the items' means over N, v_r the residual variance over S N, the variance is
    max(v_s + v_i - v_r, v_s, v_i) (Searle, Casella, McCulloch 1992, "Variance Components", ch. 4). The quantile is
    Student's t of S - 1 and of N - 1 degrees of freedom, weighted by v_s and v_i (Cochran 1964, "Approximate
    significance levels of the Behrens-Fisher test", Biometrics 20): Satterthwaite's degrees of freedom cover too little
    with three seeds. A single seed, or a part of a single item, has no interval.
    """
    mean = float(np.mean([part.mean() for part in parts]))
    seeds, counts = len(parts[0]), np.array([part.shape[1] for part in parts])
    if seeds < 2 or counts.min() < 2:
        return Interval(mean, math.nan, math.nan)
    v_seed = float(np.mean([part.mean(axis=1) for part in parts], axis=0).var(ddof=1)) / seeds
    of_items = np.array([part.mean(axis=0).var(ddof=1) for part in parts]) / counts / len(parts) ** 2
    residual = np.array([_residual(part) for part in parts]) / (seeds * counts) / len(parts) ** 2
    v_item = float(of_items.sum())
    if v_seed + v_item == 0:
        return Interval(mean, mean, mean)
    t_item = float(quantile(v_item**2 / (of_items**2 / (counts - 1)).sum(), confidence)) if v_item else 0.0
    t = (v_seed * float(quantile(seeds - 1, confidence)) + v_item * t_item) / (v_seed + v_item)
    half = t * math.sqrt(max(v_seed + v_item - float(residual.sum()), v_seed, v_item))
    return Interval(mean, mean - half, mean + half)


def crossed(by_seed: Sequence[Mapping[str, Mapping[Any, float]]]) -> list[np.ndarray]:
    """For `two_way`: float [seeds, items] of each part that all seeds have, over the items of it that all have.

    Args:
        by_seed: for each seed, part -> item -> value.
    """
    parts = []
    for part in [part for part in by_seed[0] if all(part in of_seed for of_seed in by_seed)] if by_seed else []:
        items = sorted(set.intersection(*(set(of_seed[part]) for of_seed in by_seed)))
        if items:
            parts.append(np.array([[of_seed[part][item] for item in items] for of_seed in by_seed]))
    return parts


def _residual(values: np.ndarray) -> float:
    """The variance that neither seeds nor items explain."""
    left = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0, keepdims=True) + values.mean()
    return float((left**2).sum()) / ((values.shape[0] - 1) * (values.shape[1] - 1))


def share(hits: int, count: int) -> Interval:
    """A share of items.

    Estimand: the share of all such items, for this very model. Design: independent items. Formula: Wilson's score
    interval (Wilson 1927).
    """
    interval = stats.binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(hits / count, float(interval.low), float(interval.high))


def correlation(r: float, freedom: float, confidence: float = CONFIDENCE) -> Interval:
    """A partial correlation.

    Estimand: the correlation of all such pairs. Design: independent pairs, near normal; `freedom` is their number less
    3 and less what was taken off them. Formula: Fisher's z (Fisher 1921).
    """
    half = float(stats.norm.isf((1 - confidence) / 2)) / math.sqrt(freedom)
    with np.errstate(divide="ignore"):
        low, high = np.tanh(np.arctanh(r) + np.array([-half, half]))
    return Interval(r, float(low), float(high))


def rank_correlation(x: Sequence[float], y: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Spearman's correlation of two measures of the same items.

    Estimand: the rank correlation over all such items. Design: independent items. Formula: Fisher's z with the variance
    (1 + r^2 / 2) / (n - 3) (Bonett and Wright 2000, "Sample size requirements for estimating Pearson, Kendall and
    Spearman correlations", Psychometrika 65). It needs four items, which are not all alike.
    """
    r = float(stats.spearmanr(x, y).statistic)
    return correlation(r, (len(x) - 3) / (1 + r**2 / 2), confidence)
