"""Laws of orderings: permutations, seeds, ties, hints."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedwinnow.curation.errors import NonFiniteError
from fedwinnow.strategies.orderings.by_score import by_score
from fedwinnow.strategies.orderings.shuffled import shuffled

SCORES = arrays(np.float64, st.integers(0, 30), elements=st.floats(-5, 5).map(round))


@given(scores=SCORES, seed=st.integers(0, 2**62))
def test_orderings_are_permutations(scores, seed):
    """Every order holds every position once."""
    for rule in (shuffled(), by_score(), by_score(descending=False)):
        assert sorted(rule(scores, seed).indices.tolist()) == list(range(len(scores)))


@given(scores=SCORES, seed=st.integers(0, 2**62))
def test_by_score_sorts_with_ties_in_data_order(scores, seed):
    """Descending or ascending; equal scores keep their positions, whatever the seed."""
    down = by_score()(scores, seed).indices
    up = by_score(descending=False)(scores, 0).indices
    pairs_down = [(-scores[i], i) for i in down]
    pairs_up = [(scores[i], i) for i in up]
    assert pairs_down == sorted(pairs_down)
    assert pairs_up == sorted(pairs_up)


def test_by_score_keeps_its_order_and_hints_a_constant_rate():
    """A curriculum is repeated as it is and asks for a constant learning rate."""
    order = by_score()(np.array([0.1, 0.9, 0.5]), 3)
    assert order.indices.tolist() == [1, 2, 0]
    assert order.keep_order
    assert order.schedule_hint == "constant"


def test_by_score_refuses_nan():
    """A NaN has no place in an order and is named; infinities have one."""
    with pytest.raises(NonFiniteError, match="1 NaN among 2"):
        by_score()(np.array([1.0, np.nan]), 0)
    assert by_score()(np.array([-np.inf, 0.0, np.inf]), 0).indices.tolist() == [2, 1, 0]


def test_shuffled_depends_on_the_seed_only():
    """The same seed gives the same order whatever the scores; another seed another one."""
    one, other = np.arange(50.0), np.zeros(50)
    assert shuffled()(one, 1).indices.tolist() == shuffled()(other, 1).indices.tolist()
    assert shuffled()(one, 1).indices.tolist() != shuffled()(one, 2).indices.tolist()
    assert not shuffled()(one, 1).keep_order
    assert shuffled()(one, 1).schedule_hint is None
