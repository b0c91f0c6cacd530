"""Paired comparison of two models, or of two kinds of query, on the same questions or texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES, CONFIDENCE = 2000, 0.95
NORMAL = 1.96  # standard errors of a normal distribution for a 95 % interval


@dataclass(frozen=True)
class Paired:
    """b compared with a, on `questions` common questions."""

    questions: int
    difference: float  # accuracy of b less that of a
    low: float  # 95 % bootstrap interval of the difference
    high: float
    only_a: int  # correct in a only
    only_b: int
    p: float  # McNemar's exact test that both are equally likely


def paired(a: Sequence[bool], b: Sequence[bool], seed: int = 0) -> Paired:
    """Compare two lists of correctness, question by question.

    The interval is a percentile bootstrap over questions (2,000 resamples); the test is McNemar's, exact: under the
    null hypothesis a question on which they differ is as likely right in a as in b.
    """
    assert len(a) == len(b) > 0, (len(a), len(b))
    right = np.array([a, b], dtype=np.int8)
    differences = right[1] - right[0]
    only_a, only_b = int((differences < 0).sum()), int((differences > 0).sum())
    low = high = float(differences.mean())
    if only_a or only_b:
        # Only the numbers of -1, 0 and 1 matter: resampling questions draws them from a multinomial distribution.
        shares = [only_a / len(a), 1 - (only_a + only_b) / len(a), only_b / len(a)]
        draws = np.random.default_rng(seed).multinomial(len(a), shares, size=RESAMPLES)
        tail = (1 - CONFIDENCE) / 2
        low, high = (float(q) for q in np.quantile((draws[:, 2] - draws[:, 0]) / len(a), [tail, 1 - tail]))
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a or only_b else 1.0
    return Paired(len(a), float(differences.mean()), low, high, only_a, only_b, p)


@dataclass(frozen=True)
class PairedMeans:
    """b compared with a, on `documents` common documents."""

    documents: int
    difference: float  # mean of b less that of a
    low: float  # 95 % interval of the difference (Student's t)
    high: float
    p: float  # t-test that it is zero


def paired_means(a: Sequence[float], b: Sequence[float]) -> PairedMeans:
    """Compare two lists of values, document by document. A single document has no interval."""
    assert len(a) == len(b) > 0, (len(a), len(b))
    differences = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    mean = float(differences.mean())
    if np.ptp(differences) == 0:  # the t statistic is not defined
        return PairedMeans(len(a), mean, mean, mean, float(mean == 0 or len(a) == 1))
    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(CONFIDENCE)
    return PairedMeans(len(a), mean, float(low), float(high), float(test.pvalue))
