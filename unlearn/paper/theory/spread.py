"""Means over questions with intervals, and seeded noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unlearn.evaluate.statistics import CONFIDENCE, RESAMPLES
from unlearn.methods.randomness import generator

Interval = dict[str, float]


def mean_interval(values: Sequence[float] | np.ndarray | Tensor) -> Interval:
    """Mean over questions with its percentile bootstrap interval (95 %, 2,000 resamples, a fixed seed)."""
    found = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(0)
    means = found[rng.integers(0, len(found), (RESAMPLES, len(found)))].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return {"mean": float(found.mean()), "low": float(low), "high": float(high)}


def quartiles(values: Sequence[float] | np.ndarray | Tensor) -> Interval:
    """Median and quartiles over questions."""
    low, median, high = np.quantile(np.asarray(values, dtype=np.float64), [0.25, 0.5, 0.75])
    return {"median": float(median), "p25": float(low), "p75": float(high)}


def normal(rows: int, columns: int, *key: str | int) -> Tensor:
    """Standard normal noise of a key, float32 [rows, columns] on the CPU."""
    return torch.randn(rows, columns, generator=generator("theory", *key))
