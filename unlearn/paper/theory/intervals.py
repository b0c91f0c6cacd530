"""Intervals over questions as they are written to theory.json, and seeded noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unlearn.methods.randomness import generator
from unlearn.statistics.intervals import over_items, share

Interval = dict[str, float]


def mean_interval(values: Sequence[float] | np.ndarray | Tensor) -> Interval:
    """Mean over questions with its 95 % interval."""
    return over_items(np.asarray(values, dtype=np.float64))._asdict()


def share_of(hits_N: Tensor) -> Interval:
    """Share of questions with its 95 % interval."""
    return share(int(hits_N.sum()), len(hits_N))._asdict()


def quartiles(values: Sequence[float] | np.ndarray | Tensor) -> Interval:
    """Median and quartiles over questions."""
    low, median, high = np.quantile(np.asarray(values, dtype=np.float64), [0.25, 0.5, 0.75])
    return {"median": float(median), "p25": float(low), "p75": float(high)}


def normal(rows: int, columns: int, *key: str | int) -> Tensor:
    """Standard normal noise of a key, float32 [rows, columns] on the CPU."""
    return torch.randn(rows, columns, generator=generator("theory", *key))
