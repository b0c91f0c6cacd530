"""Two models, or two kinds of query, compared on the same questions or texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from unlearn.statistics.intervals import NORMAL, over_items


@dataclass(frozen=True)
class Paired:
    """b compared with a, on `questions` common questions."""

    questions: int
    difference: float  # accuracy of b less that of a
    low: float  # 95 % interval of the difference
    high: float
    only_a: int  # correct in a only
    only_b: int
    p: float  # McNemar's exact test that both are equally likely


def paired(a: Sequence[bool], b: Sequence[bool]) -> Paired:
    """Compare two lists of correctness, question by question.

    Estimand: the difference of accuracy over all such questions, for these very models. Design: independent questions;
    several that ask for one fact are not, and make the interval too narrow. Formula: Wald's interval with one more
    question that only a, and one that only b answers (Bonett and Price 2012, "Adjusted Wald confidence interval for a
    difference of binomial proportions based on paired data", J. Educ. Behav. Stat. 37). So two models with the same
    answers have an interval, too. The test is McNemar's, exact: under the null hypothesis a question on which they
    differ is as likely right in a as in b (McNemar 1947).
    """
    assert len(a) == len(b) > 0, (len(a), len(b))
    n = len(a)
    only_a = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
    only_b = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
    in_a, in_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    middle, half = in_b - in_a, NORMAL * math.sqrt((in_a + in_b - (in_b - in_a) ** 2) / (n + 2))
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a or only_b else 1.0
    return Paired(n, (only_b - only_a) / n, max(-1.0, middle - half), min(1.0, middle + half), only_a, only_b, p)


@dataclass(frozen=True)
class PairedMeans:
    """b compared with a, on `documents` common documents."""

    documents: int
    difference: float  # mean of b less that of a
    low: float  # 95 % interval of the difference
    high: float
    p: float  # t-test that it is zero


def paired_means(a: Sequence[float], b: Sequence[float]) -> PairedMeans:
    """Compare two lists of values, document by document.

    The interval is `over_items` of the differences, the test Student's. A single document has no interval.
    """
    assert len(a) == len(b) > 0, (len(a), len(b))
    differences = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    mean, low, high = over_items(differences)
    if np.ptp(differences) == 0:  # the t statistic is not defined
        return PairedMeans(len(a), mean, mean, mean, float(mean == 0 or len(a) == 1))
    return PairedMeans(len(a), mean, low, high, float(stats.ttest_1samp(differences, 0.0).pvalue))
