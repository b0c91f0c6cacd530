"""Tests that belong to intervals, and Holm's correction."""

from functools import partial

import numpy as np
import pytest
from scipy import stats

from unlearn.statistics.families import holm, p_value
from unlearn.statistics.intervals import over_seeds, two_way

VALUES = np.random.default_rng(0).normal(0.5, size=8)


def test_p_is_that_of_the_test_whose_interval_it_is():
    expected = stats.ttest_1samp(VALUES, 0.1).pvalue
    assert p_value(lambda confidence: over_seeds(VALUES.tolist(), confidence), 0.1) == pytest.approx(expected, rel=1e-6)
    assert p_value(lambda confidence: over_seeds(VALUES.tolist(), confidence), VALUES.mean()) == pytest.approx(1)
    assert p_value(partial(two_way, [np.ones((3, 4))]), 0) == 0


def test_p_is_a_twentieth_at_the_ends_of_the_interval():
    parts = [np.add.outer(VALUES[:3], np.random.default_rng(1).normal(size=9))]
    for end in two_way(parts)[1:]:
        assert p_value(partial(two_way, parts), end) == pytest.approx(0.05)


def test_holm_by_hand():
    """Smallest first: 3 times 0.01, 2 times 0.02, once 0.03, which may not be below the one before."""
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []
