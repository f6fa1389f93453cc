"""Laws of the plan: learning rates and passes that span rounds."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.client.plan import SCHEDULES, check_order, draws, learning_rate
from fedwinnow.curation.errors import (
    ConfigError,
    EmptySelectionError,
    PluginError,
    ProtocolError,
)
from fedwinnow.curation.protocols import Order


@given(
    total=st.integers(1, 200),
    schedule=st.sampled_from(SCHEDULES),
    warmup=st.floats(0.0, 0.99),
    peak=st.floats(1e-6, 1.0),
)
def test_learning_rate_rises_to_the_peak_and_never_rises_again(total, schedule, warmup, peak):
    """Rates are in (0, peak], the peak is reached, and there is one maximum plateau."""
    rates = [learning_rate(step, total, peak, schedule, warmup) for step in range(total)]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    assert max(rates) == pytest.approx(peak)
    top = int(np.argmax(np.array(rates) >= peak * (1 - 1e-12)))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_learning_rate_golden_values():
    """Closed forms at a few steps (by hand)."""
    assert [learning_rate(s, 4, 1.0, "constant", 0.0) for s in range(4)] == [1, 1, 1, 1]
    assert [learning_rate(s, 4, 1.0, "linear", 0.0) for s in range(4)] == [1, 0.75, 0.5, 0.25]
    cosine = [learning_rate(s, 4, 2.0, "cosine", 0.0) for s in range(4)]
    assert cosine == pytest.approx([2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5])
    warm = [learning_rate(s, 4, 1.0, "constant", 0.5) for s in range(4)]
    assert warm == [0.5, 1, 1, 1]


def test_learning_rate_refuses_what_is_outside():
    """An unknown schedule and a step beyond the plan are named."""
    with pytest.raises(ConfigError, match=r"'exponential' is unknown.*constant, linear, cosine"):
        learning_rate(0, 4, 1.0, "exponential", 0.0)
    for step in (-1, 4):
        with pytest.raises(ProtocolError, match="plan of 4 steps"):
            learning_rate(step, 4, 1.0, "constant", 0.0)


@given(count=st.integers(1, 12), start=st.integers(0, 60), keep=st.booleans())
def test_draws_go_on_where_they_stopped(count, start, keep):
    """Draws from number s on are the draws from 0 on without the first s."""
    order = Order(indices=np.arange(count)[::-1].copy(), keep_order=keep)
    whole = list(itertools.islice(draws(order, 7, 0), start + 20))
    assert list(itertools.islice(draws(order, 7, start), 20)) == whole[start:]


@given(count=st.integers(1, 12), keep=st.booleans(), seed=st.integers(0, 2**40))
def test_draws_hold_every_sample_once_a_pass(count, keep, seed):
    """Each pass is a permutation; the first is the order, and all are where it is kept."""
    indices = np.random.default_rng(seed).permutation(count)
    stream = draws(Order(indices=indices, keep_order=keep), seed, 0)
    for number in range(4):
        one = list(itertools.islice(stream, count))
        assert sorted(one) == list(range(count))
        if keep or number == 0:
            assert one == indices.tolist()


def test_draws_shuffle_later_passes_anew():
    """Without a kept order later passes differ from each other and between seeds."""
    order = Order(indices=np.arange(30))
    passes = [
        tuple(itertools.islice(draws(order, seed, 30 * number), 30))
        for seed in (0, 1)
        for number in (1, 2)
    ]
    assert len(set(passes)) == 4


def test_check_order_refuses_what_is_no_permutation():
    """No sample, a repeated and a missing position are named."""
    with pytest.raises(EmptySelectionError):
        check_order(Order(indices=np.arange(0)), 0)
    for indices in ([0, 0, 2], [0, 1], [1, 2, 3]):
        with pytest.raises(PluginError, match="permutation of 3"):
            check_order(Order(indices=np.array(indices)), 3)
