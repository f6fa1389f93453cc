"""Laws of the plan of batches: every sample once, within the budget, at the least cost there is."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.client.measuring import length_buckets
from fedwinnow.client.measuring.length_buckets import FULL, PADDED, Buckets, plan_batches


def cost_of(cut, budget):
    """What batches of falling lengths cost, in tokens; None where one is not allowed."""
    for batch in cut:
        padded = len(batch) * max(batch)
        if len(batch) > 1 and (padded > budget or padded > PADDED * sum(batch)):
            return None
    return sum(len(batch) * max(batch) + budget / FULL for batch in cut)


def every_cut(falling):
    """All ways to cut a list into runs."""
    inner = range(1, len(falling))
    for number in range(len(falling)):
        for places in combinations(inner, number):
            yield [falling[a:b] for a, b in pairwise([0, *places, len(falling)])]


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=9), budget=st.integers(1, 400))
def test_plan_costs_as_little_as_the_best_of_all_cuts(lengths, budget):
    """Against every cut of the samples, longest first, into batches that are allowed."""
    array = np.array(lengths, dtype=np.int64)
    found = [array[batch].tolist() for batch in plan_batches(array, budget)]
    costs = [cost_of(cut, budget) for cut in every_cut(sorted(lengths, reverse=True))]
    assert cost_of(found, budget) == min(cost for cost in costs if cost is not None)


@given(lengths=st.lists(st.integers(0, 500), max_size=60), budget=st.integers(1, 4000))
def test_plan_takes_every_sample_once_within_budget_and_cap(lengths, budget):
    """One alone may exceed the budget; padding is a tenth at most, however large the budget."""
    array = np.array(lengths, dtype=np.int64)
    plan = plan_batches(array, budget)
    assert sorted(i for batch in plan for i in batch) == list(range(len(lengths)))
    for batch in plan:
        assert len(batch) == 1 or len(batch) * array[batch].max() <= budget
        assert (
            len(batch) == 1
            or len(batch) * array[batch].max() <= PADDED * array[batch].clip(1).sum()
        )


@pytest.mark.parametrize("budget", [1, 64, 10_000])
def test_plan_is_longest_first(budget):
    """Falling lengths, equal ones in their order."""
    lengths = np.array([5, 30, 12, 30, 7])
    flat = [int(i) for batch in plan_batches(lengths, budget) for i in batch]
    assert flat == [1, 3, 2, 4, 0]


def test_equal_lengths_fill_batches():
    """Full batches first, the rest in the last one: no batch is spent for nothing."""
    assert [len(batch) for batch in plan_batches(np.full(37, 128), 2048)] == [16, 16, 5]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    budgets=st.lists(st.integers(1, 400), min_size=1, max_size=5),
)
def test_a_budget_that_changes_changes_what_comes_after(lengths, budgets):
    """Each next batch is the first of the plan of what is left, under the budget of that moment."""
    array = np.array(lengths, dtype=np.int64)
    cut, order, start = Buckets(array), np.argsort(-array, kind="stable"), 0
    for turn in range(len(lengths)):
        budget = budgets[turn % len(budgets)]
        left = order[start:]
        found = cut.batch(start, budget)
        expected = left[plan_batches(array[left], budget)[0]] if len(left) else left
        assert found.tolist() == expected.tolist()
        start += len(found)
    assert start == len(lengths)
    assert len(cut.batch(start, 1)) == 0


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    budget=st.integers(1, 400),
    ahead=st.integers(2, 50),
)
def test_a_long_pass_is_cut_in_turn_and_may_begin_again(lengths, budget, ahead):
    """Some samples ahead: allowed batches, every sample once, and a second pass the same."""
    array = np.array(lengths, dtype=np.int64)
    order = np.argsort(-array, kind="stable")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(length_buckets, "AHEAD", ahead)
        cut, passes = length_buckets.Buckets(array), []
        for _ in range(2):
            passes.append([])
            while (start := sum(map(len, passes[-1]))) < len(lengths):
                passes[-1].append(cut.batch(start, budget).tolist())
    assert passes[0] == passes[1]
    assert [i for batch in passes[0] for i in batch] == order.tolist()
    assert cost_of([array[batch].tolist() for batch in passes[0]], budget) is not None
    if len(lengths) <= ahead:
        assert passes[0] == [batch.tolist() for batch in plan_batches(array, budget)]
