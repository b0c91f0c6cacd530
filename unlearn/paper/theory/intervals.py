"""Intervals over questions, and seeded noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from unlearn.evaluation.statistics import CONFIDENCE, RESAMPLES
from unlearn.methods.randomness import generator

Interval = dict[str, float]


def mean_interval(values: Sequence[float] | np.ndarray | Tensor) -> Interval:
    """Mean over questions with its percentile bootstrap interval (95 %, 2,000 resamples, a fixed seed)."""
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(0)
    means = array[rng.integers(0, len(array), (RESAMPLES, len(array)))].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return {"mean": float(array.mean()), "low": float(low), "high": float(high)}


def share(hits_N: Tensor) -> Interval:
    """Share of questions with Wilson's 95 % interval."""
    interval = stats.binomtest(int(hits_N.sum()), len(hits_N)).proportion_ci(CONFIDENCE, method="wilson")
    return {"mean": hits_N.double().mean().item(), "low": interval.low, "high": interval.high}


def quartiles(values: Sequence[float] | np.ndarray | Tensor) -> Interval:
    """Median and quartiles over questions."""
    low, median, high = np.quantile(np.asarray(values, dtype=np.float64), [0.25, 0.5, 0.75])
    return {"median": float(median), "p25": float(low), "p75": float(high)}


def normal(rows: int, columns: int, *key: str | int) -> Tensor:
    """Standard normal noise of a key, float32 [rows, columns] on the CPU."""
    return torch.randn(rows, columns, generator=generator("theory", *key))
