"""Laws of paired intervals."""

import numpy as np
import pytest

from fedwinnow.curation.scores.bootstrap import crossed_bootstrap, paired_bootstrap


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


def test_crossed_interval_of_one_seed_is_that_of_its_items():
    """With one row, only items are resampled: the paired interval, up to the draws."""
    items = np.random.default_rng(4).normal(size=80)
    mean, low, high = crossed_bootstrap(items[None], seed=0, resamples=10_000)
    alone = paired_bootstrap(items, np.zeros(80), seed=1)
    assert (mean, low, high) == pytest.approx(alone, abs=0.02)


def test_crossed_interval_knows_that_seeds_share_items():
    """Equal rows are no more evidence than one of them, and seeds apart widen the interval."""
    items = np.random.default_rng(5).normal(size=80)
    once = crossed_bootstrap(items[None], seed=0)
    thrice = crossed_bootstrap(np.stack([items] * 3), seed=0)
    assert thrice[2] - thrice[1] == pytest.approx(once[2] - once[1], rel=0.1)
    moved = crossed_bootstrap(np.stack([items - 1, items, items + 1]), seed=0)
    assert moved[2] - moved[1] > 2 * (once[2] - once[1])


def test_crossed_interval_leaves_out_cells_that_are_not_there():
    """A NaN is no measurement: mean over the others; a constant stays a point; none is refused."""
    table = np.array([[1.0, np.nan, 1.0], [np.nan, 1.0, 1.0]])
    assert crossed_bootstrap(table, seed=0) == pytest.approx((1.0, 1.0, 1.0))
    table[0, 0] = 3.0
    assert crossed_bootstrap(table, seed=0)[0] == pytest.approx(1.5)
    with pytest.raises(ValueError, match="none"):
        crossed_bootstrap(np.full((2, 3), np.nan), seed=0)
