"""Laws of paired intervals."""

import numpy as np
import pytest

from fedwinnow.server.statistics import paired_bootstrap


def test_interval_of_a_constant_difference_is_a_point():
    """Where every item differs by the same, nothing is uncertain."""
    items = np.random.default_rng(0).normal(size=20)
    assert paired_bootstrap(items + 0.5, items, seed=0) == pytest.approx((0.5, 0.5, 0.5))


def test_interval_turns_with_the_order_of_the_arms():
    """a − b and b − a are mirror images for one seed."""
    random = np.random.default_rng(1)
    a, b = random.normal(size=30), random.normal(size=30)
    mean, low, high = paired_bootstrap(a, b, seed=3)
    assert paired_bootstrap(b, a, seed=3) == pytest.approx((-mean, -high, -low))
    assert low <= mean <= high


def test_interval_is_that_of_the_normal_law_for_many_items():
    """About ± 1.96 standard errors."""
    difference = np.random.default_rng(2).normal(size=2000)
    _, low, high = paired_bootstrap(difference, np.zeros(2000), seed=0)
    assert high - low == pytest.approx(2 * 1.96 * difference.std() / np.sqrt(2000), rel=0.05)


def test_unpaired_or_no_items_are_refused():
    """Lengths must agree."""
    for a, b in ((np.ones(2), np.ones(3)), (np.ones(0), np.ones(0))):
        with pytest.raises(ValueError, match="paired"):
            paired_bootstrap(a, b, seed=0)
