"""Laws of the plan: passes over the samples that span rounds."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.client.training.sample_stream import check_order, sample_stream
from fedwinnow.curation.errors import EmptySelectionError, PluginError
from fedwinnow.strategies.interfaces.ordering import Order


@given(count=st.integers(1, 12), start=st.integers(0, 60), keep=st.booleans())
def test_draws_go_on_where_they_stopped(count, start, keep):
    """Draws from number s on are the draws from 0 on without the first s."""
    order = Order(indices=np.arange(count)[::-1].copy(), keep_order=keep)
    whole = list(itertools.islice(sample_stream(order, 7, 0), start + 20))
    assert list(itertools.islice(sample_stream(order, 7, start), 20)) == whole[start:]


@given(count=st.integers(1, 12), keep=st.booleans(), seed=st.integers(0, 2**40))
def test_draws_hold_every_sample_once_a_pass(count, keep, seed):
    """Each pass is a permutation; the first is the order, and all are where it is kept."""
    indices = np.random.default_rng(seed).permutation(count)
    stream = sample_stream(Order(indices=indices, keep_order=keep), seed, 0)
    for number in range(4):
        one = list(itertools.islice(stream, count))
        assert sorted(one) == list(range(count))
        if keep or number == 0:
            assert one == indices.tolist()


def test_draws_shuffle_later_passes_anew():
    """Without a kept order later passes differ from each other and between seeds."""
    order = Order(indices=np.arange(30))
    passes = [
        tuple(itertools.islice(sample_stream(order, seed, 30 * number), 30))
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
