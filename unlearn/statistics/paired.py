"""Two models, or two kinds of query, compared on the same questions or texts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
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
    p: float  # McNemar's exact test that both are equally likely; of several questions a fact the sign test over facts


def paired(a: Sequence[bool], b: Sequence[bool], facts: Sequence[Hashable] | None = None) -> Paired:
    """Compare two lists of correctness, question by question.

    Estimand: the difference of accuracy over all questions about such facts, for these very models. Design: independent
    facts, each asked about in one or several questions, whose sum, over the mean number of questions, is its value.
    Formula: Wald's interval of the facts' mean, with one more fact that only a, and one that only b knows (Bonett and
    Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data", J.
    Educ. Behav. Stat. 37; facts in place of questions: Liang and Zeger 1986, "Longitudinal data analysis using
    generalized linear models", Biometrika 73). So two models with the same answers have an interval, too. The test is
    McNemar's, exact: under the null hypothesis a fact on which they differ is as likely better in a as in b (McNemar
    1947; of several questions the sign test over facts).

    Args:
        facts: the fact that each question asks about; None: each one about its own.
    """
    assert len(a) == len(b) > 0, (len(a), len(b))
    differences = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    _, of_fact = np.unique([str(fact) for fact in facts] if facts else np.arange(len(a)), return_inverse=True)
    sums = np.bincount(of_fact, differences).astype(float)
    by_fact = sums * (len(sums) / len(a))
    worse, better = -by_fact[by_fact < 0], by_fact[by_fact > 0]
    n = len(by_fact) + 2
    middle = (better.sum() + 1) / n - (worse.sum() + 1) / n
    variance = ((worse**2).sum() + 1) / n + ((better**2).sum() + 1) / n - middle**2
    low, high = middle - NORMAL * math.sqrt(variance / n), middle + NORMAL * math.sqrt(variance / n)
    p = float(stats.binomtest(len(worse), len(worse) + len(better)).pvalue) if len(worse) or len(better) else 1.0
    only_a, only_b = int((differences < 0).sum()), int((differences > 0).sum())
    return Paired(len(a), (only_b - only_a) / len(a), float(max(-1.0, low)), float(min(1.0, high)), only_a, only_b, p)


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
