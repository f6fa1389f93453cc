"""Laws of the mean of bounded losses that a site releases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedwinnow.curation.scores.bounded_mean import bounded_mean, grid_step
from fedwinnow.curation.scores.rounded_counts import fewest_of_count, round_count

ANY = st.floats(allow_nan=True, allow_infinity=True, width=64)
CAP = 5.5


@settings(max_examples=150, deadline=None)
@given(st.lists(ANY, min_size=1, max_size=60), st.data())
def test_bounded_mean_moves_by_one_step_at_most(losses, data):
    """Law: another value in one sample's place moves the mean by at most one step of the grid."""
    count = data.draw(st.integers(1, len(losses)))
    place, other = data.draw(st.integers(0, len(losses) - 1)), data.draw(ANY)
    changed = [*losses[:place], other, *losses[place + 1 :]]
    step = grid_step(CAP, count)
    before, after = (
        bounded_mean(np.array(each), cap=CAP, count=count) / step for each in (losses, changed)
    )
    assert before == int(before)
    assert abs(before - after) <= 1
    assert 0 <= before * step <= CAP + step


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, CAP), min_size=1, max_size=60))
def test_bounded_mean_is_the_mean_up_to_half_a_step(losses):
    """Oracle: losses within the bound have their own mean, within half a step of the grid."""
    found = bounded_mean(np.array(losses), cap=CAP, count=len(losses))
    step = grid_step(CAP, len(losses))
    assert step >= CAP / len(losses)
    assert found == pytest.approx(np.mean(losses), abs=step / 2 + 1e-5)


def test_bounded_mean_counts_what_is_not_finite_as_the_bound():
    """Edge: NaN and infinities of either sign count as the bound; values outside are clamped."""
    strange, plain = [np.nan, np.inf, -np.inf, 1e9, -3.0], [CAP, CAP, CAP, CAP, 0.0]
    means = [bounded_mean(np.array(each), cap=CAP, count=5) for each in (strange, plain)]
    assert means[0] == means[1]


@given(st.integers(0, 10**6), st.integers(1, 100))
def test_fewest_of_a_count_follows_from_it_and_is_no_more_than_there_are(number, step):
    """Law: a grid for the fewest is fine enough for all that are told alike, and shows no more."""
    told = round_count(number, step)
    fewest = fewest_of_count(told, step)
    assert fewest <= number or told == 0
    if told:
        assert round_count(fewest, step) in {told, told - step}
        assert fewest >= 1
