"""Laws of the budget law: its formula, its fit, and how much to keep."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedwinnow.curation.errors import NonFiniteError, ProtocolError
from fedwinnow.strategies.maths.data_scaling_law import (
    Law,
    expected_loss,
    expected_losses,
    exposure,
    fit_law,
    most_worth,
)

POOL = 64.0
LAW = Law(
    utilities=(-0.20, -0.15, -0.10, -0.05),
    half_lives=(2.0, 4.0, 3.0, 8.0),
    scale=3.0,
    floor=1.0,
    pool=POOL,
)
SEEN = POOL * np.array([1.0, 2.0, 4.0, 8.0])
"""Checkpoints of one run: 1, 2, 4 and 8 passes."""


def pool_of(law: Law, place: int) -> Law:
    """One pool alone."""
    return replace(law, utilities=(law.utilities[place],), half_lives=(law.half_lives[place],))


def measured(law: Law) -> np.ndarray:
    """Noiseless losses of each pool at the checkpoints."""
    pools = [pool_of(law, place) for place in range(len(law.utilities))]
    return np.array([[expected_loss(p, n, best=1, size=POOL) for n in SEEN] for p in pools])


def slow_loss(law: Law, seen: float, best: int, size: float) -> float:
    """The law as its product, pass by pass and pool by pool."""
    unique, k, before = best * size, 1, 0.0
    product = law.scale
    while before < seen:
        after = min(k * unique, seen)
        b_k = 0.0
        for b, tau in list(zip(law.utilities, law.half_lives, strict=True))[:best]:
            b_k += b * 0.5 ** ((k - 1) / (tau * unique / law.pool)) / best
        product *= (after if k == 1 else after / before) ** b_k
        k, before = k + 1, after
    return product + law.floor


@pytest.mark.parametrize("size", [10.0, POOL, 200.0])
@pytest.mark.parametrize("seen", [1.0, 37.0, 64.0, 65.0, 640.0, 3001.5])
def test_scaling_law_is_its_product(seen, size):
    """Logarithms, and sums over pools, give what the printed product gives."""
    for best in (1, 2, 3, 4):
        slow = slow_loss(LAW, seen, best, size)
        assert expected_loss(LAW, seen, best=best, size=size) == pytest.approx(slow, rel=1e-12)


def test_scaling_floor_stands_outside_the_product():
    """Another d moves every loss by that much, however often samples were repeated."""
    lifted = replace(LAW, floor=LAW.floor + 0.25)
    for seen in (10.0, 64.0, 6400.0):
        for low, high in zip(
            expected_losses(LAW, seen, POOL), expected_losses(lifted, seen, POOL), strict=True
        ):
            assert high - low == pytest.approx(0.25, abs=1e-12)


def test_scaling_repetition_of_endless_half_life_is_new_data():
    """With τ → ∞ only the number of samples seen counts; with τ → 0 only the unique ones."""
    assert exposure(640.0, 64.0, 1e9) == pytest.approx(math.log(640), rel=1e-6)
    assert exposure(640.0, 64.0, 1e-9) == pytest.approx(math.log(64), rel=1e-12)


def test_scaling_fit_recovers_noiseless_runs():
    """b and τ of each pool, a and d, from losses after 1, 2, 4 and 8 passes."""
    found = fit_law(measured(LAW), SEEN, pool=POOL)
    assert found.error < 1e-8
    assert found.law.utilities == pytest.approx(LAW.utilities, rel=1e-4)
    assert found.law.half_lives == pytest.approx(LAW.half_lives, rel=1e-4)
    assert (found.law.scale, found.law.floor) == pytest.approx((3.0, 1.0), rel=1e-4)


def test_scaling_fit_recovers_noisy_runs_where_the_floor_is_known():
    """0.5 % noise: b within 0.01 and τ within a factor of 1.5 of the truth, in the median draw."""
    random, b, tau = np.random.default_rng(0), [], []
    for _ in range(12):
        noise = 1 + 0.005 * random.normal(size=(4, 4))
        law = fit_law(measured(LAW) * noise, SEEN, pool=POOL, floor=1.0).law
        b.append(np.abs(np.array(law.utilities) - LAW.utilities))
        tau.append(np.abs(np.log(np.array(law.half_lives) / LAW.half_lives)))
    assert (np.median(b, axis=0) < 0.01).all()
    assert (np.median(tau, axis=0) < math.log(1.5)).all()


def test_scaling_fit_predicts_from_noisy_runs_whatever_the_floor():
    """0.5 % noise, d unknown: unions are foretold within 4 %, the choice costs at most 1 %."""
    random = np.random.default_rng(1)
    for _ in range(5):
        noise = 1 + 0.005 * random.normal(size=(4, 4))
        law = fit_law(measured(LAW) * noise, SEEN, pool=POOL).law
        for seen in (128.0, 1024.0):
            truth, told = (np.array(expected_losses(one, seen, POOL)) for one in (LAW, law))
            assert told == pytest.approx(truth, rel=0.04)
            assert truth[most_worth(tuple(told)) - 1] <= 1.01 * truth.min()


def test_scaling_a_pool_that_teaches_nothing_has_no_utility():
    """Losses that do not fall give b = 0 beside a pool that learns."""
    flat = measured(LAW)
    flat[3] = flat.max() * 1.2
    found = fit_law(flat, SEEN, pool=POOL).law
    assert found.utilities[3] == pytest.approx(0.0, abs=1e-3)
    assert found.utilities[0] < -0.01


@given(
    st.lists(st.floats(-0.6, -0.001), min_size=2, max_size=4),
    st.floats(0.2, 40.0),
    st.integers(1, 500),
)
@settings(max_examples=60)
def test_scaling_kept_share_never_falls_with_the_budget(utilities, tau, size):
    """Ordered pools of one half-life, every union ends a pass: more budget keeps no fewer pools."""
    law = Law(
        utilities=tuple(sorted(utilities)),
        half_lives=(tau,) * len(utilities),
        scale=1.0,
        floor=0.5,
        pool=float(size),
    )
    whole = math.lcm(*range(1, len(law.utilities) + 1)) * law.pool
    losses = [np.array(expected_losses(law, whole * turn, law.pool)) for turn in range(1, 20)]
    kept = [most_worth(tuple(one)) for one in losses]
    for before, after, one in zip(kept, kept[1:], losses[1:], strict=False):
        assert after >= before or one[before - 1] - one[after - 1] < 1e-12 * law.scale


@given(st.floats(1.0, 1e5), st.floats(1.0, 1e3))
@settings(max_examples=60)
def test_scaling_choice_is_that_of_brute_force(seen, size):
    """No other number of pools has a smaller loss by the slow product."""
    seen = min(seen, 200 * size)
    slow = [slow_loss(LAW, seen, best, size) for best in (1, 2, 3, 4)]
    chosen = most_worth(expected_losses(LAW, seen, size))
    assert slow[chosen - 1] <= min(slow) * (1 + 1e-9)


def test_scaling_small_budget_keeps_few_and_a_large_one_all():
    """What the law is for: the best quarter for one look at it, everything for thousands."""
    law = replace(LAW, utilities=(-0.20, -0.19, -0.18, -0.17), half_lives=(0.5,) * 4)
    assert most_worth(expected_losses(law, POOL, POOL)) == 1
    assert most_worth(expected_losses(law, 5000 * POOL, POOL)) == 4


def test_scaling_of_equals_the_most_is_kept():
    """Where pools teach nothing, nothing speaks for dropping any."""
    assert most_worth((1.0, 1.0, 1.0)) == 3


def test_scaling_fit_refuses_what_is_no_loss():
    """A NaN, a negative loss, too few checkpoints or an impossible floor: named errors."""
    losses = measured(LAW)
    for bad in (np.nan, np.inf, -1.0):
        spoiled = losses.copy()
        spoiled[2, 1] = bad
        with pytest.raises(NonFiniteError, match="bucket 3"):
            fit_law(spoiled, SEEN, pool=POOL)
    with pytest.raises(ProtocolError, match="three"):
        fit_law(losses[:, :2], SEEN[:2], pool=POOL)
    with pytest.raises(ProtocolError, match="floor"):
        fit_law(losses, SEEN, pool=POOL, floor=9.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("utilities", (0.1, -0.1, -0.1, -0.1)),
        ("utilities", ()),
        ("half_lives", (1.0,)),
        ("half_lives", (0.0, 1.0, 1.0, 1.0)),
        ("scale", 0.0),
        ("floor", -0.1),
        ("floor", math.nan),
        ("pool", 0.0),
    ],
)
def test_scaling_law_names_the_number_that_is_wrong(name, value):
    """Ranges are checked where a law is made."""
    with pytest.raises(ValueError, match=r"utilities|" + name):
        replace(LAW, **{name: value})
