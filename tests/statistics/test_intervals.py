"""Intervals: by hand, and how often they hold the truth (bench/coverage.py, which writes docs/statistics.md)."""

import math

import numpy as np
import pytest
from scipy import stats

from bench.coverage import CASES, DRAWS, coverage
from unlearn.statistics.intervals import correlation, over_items, over_seeds, rank_correlation, share, two_way

RNG = np.random.default_rng(0)


def test_over_seeds_is_students_t():
    values = RNG.normal(size=5)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert over_seeds(values.tolist()) == pytest.approx((values.mean(), *expected))
    assert math.isnan(over_seeds([1.0]).low)


def test_over_items_is_students_t_of_symmetric_values_and_leans_to_the_long_tail_of_others():
    symmetric = np.array([-2.0, -1, 0, 1, 2])
    assert over_items(symmetric)[1:] == pytest.approx(stats.ttest_1samp(symmetric, 0).confidence_interval())
    skewed = over_items(np.array([0.0, 0, 1, 1, 2, 9]))
    assert skewed.high - skewed.mean > 1.5 * (skewed.mean - skewed.low)
    mirrored = over_items(-np.array([0.0, 0, 1, 1, 2, 9]))
    assert mirrored == pytest.approx((-skewed.mean, -skewed.high, -skewed.low))


def test_two_way_of_items_that_seeds_share_is_that_of_the_items():
    """Where all seeds have the same values, they are no more than one: S - 1 degrees of freedom play no part."""
    items = RNG.normal(size=40)
    expected = stats.ttest_1samp(items, 0).confidence_interval()
    assert two_way([np.tile(items, (3, 1))])[1:] == pytest.approx(tuple(expected))


def test_two_way_of_seeds_that_differ_alike_on_all_items_is_that_of_the_seeds():
    seeds = RNG.normal(size=4)
    assert two_way([np.tile(seeds[:, None], (1, 30))]) == pytest.approx(over_seeds(seeds.tolist()))


def test_two_way_of_several_tasks_counts_them_alike():
    """Two tasks whose items vary alike: half of each mean, and of the sum of their variances a quarter."""
    one, other = RNG.normal(size=30), 5 + RNG.normal(size=30)
    result = two_way([np.tile(one, (2, 1)), np.tile(other, (2, 1))])
    error = math.sqrt(one.var(ddof=1) / 30 + other.var(ddof=1) / 30) / 2
    assert result.mean == pytest.approx((one.mean() + other.mean()) / 2)
    assert 1.9 * error < result.high - result.mean < 2.1 * error
    assert math.isnan(two_way([np.ones((2, 1))]).low)
    assert two_way([np.ones((2, 3))]) == (1, 1, 1)


def test_share_and_correlation_are_wilsons_and_fishers():
    assert share(5, 10)[1:] == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert correlation(0.0, 4)[1:] == pytest.approx((-math.tanh(0.98), math.tanh(0.98)), abs=1e-4)


@pytest.mark.slow  # alone shows that the intervals hold the truth as often as they say
@pytest.mark.parametrize("case", [case for case in CASES if case.promised], ids=str)
def test_coverage(case):
    covered, above, below = coverage(case, DRAWS)
    chance = 0.8  # two standard errors of a share of 3.5 % in so many draws
    assert covered >= 93 - chance
    assert covered <= 97 + chance or case.wide
    assert max(above, below) <= (3.5 if case.symmetric else 5) + chance


def test_a_rank_correlation_is_of_ranks_and_its_interval_of_bonett_and_wright():
    x, y = [1.0, 2, 3, 4, 5, 6, 7, 8], [1.0, 4, 9, 16, 25, 64, 49, 36]
    r, low, high = rank_correlation(x, y)
    assert r == pytest.approx(1 - 6 * 8 / (8 * 63))  # two of the ranks are two off
    half = 1.959964 * math.sqrt((1 + r**2 / 2) / 5)
    assert (low, high) == pytest.approx((math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)), abs=1e-5)
    assert rank_correlation(x, np.exp(y)) == rank_correlation(x, y)
