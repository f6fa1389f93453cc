"""Laws of histogram edges and of the thresholds between them."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedwinnow.curation.errors import EmptySummaryError, NonFiniteError
from fedwinnow.curation.scores.histogram_edges import (
    PARTS,
    edges_from_public,
    is_on_grid,
    snap_to_grid,
    threshold_grid,
)

EDGES = np.linspace(-3.0, 3.0, 13)


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30),
    bins=st.integers(2, 300),
)
@example(values=[0.0, 6.901571166198635e-11], bins=2)  # closer than the rounding of probabilities
def test_edges_ascend_strictly_whatever_the_ties(values, bins):
    """Constant, tied and wide scores alike: at least 2 edges, at most one cell more than asked."""
    scores = np.array(values)
    squashed = 1 / (1 + np.exp(-np.clip(scores, -50, 50)))
    for public, probability in ((scores, False), (squashed, True)):
        edges = edges_from_public(public, bins=bins, probability=probability)
        assert (np.diff(edges) > 0).all()
        assert 2 <= len(edges) <= bins + 1


def test_edges_need_finite_public_scores():
    """None with a score, or an infinite one."""
    with pytest.raises(EmptySummaryError):
        edges_from_public(np.zeros(0), bins=4, probability=False)
    with pytest.raises(EmptySummaryError):
        edges_from_public(np.array([np.nan]), bins=4, probability=False)
    with pytest.raises(NonFiniteError):
        edges_from_public(np.array([np.inf, 0.0]), bins=4, probability=False)


def test_edges_ignore_rows_without_a_score_and_the_order_of_rows():
    """NaN rows and permutations change no edge."""
    public = np.random.default_rng(0).normal(size=50)
    edges = edges_from_public(public, bins=32, probability=False)
    more = np.concatenate([[np.nan], public[::-1], [np.nan]])
    assert np.array_equal(edges, edges_from_public(more, bins=32, probability=False))


@pytest.mark.parametrize("probability", [False, True])
def test_edges_agree_where_only_the_last_bits_of_scores_differ(probability):
    """Sites on different machines derive the same edges, bit for bit."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        public = random.normal(size=300)
        public = 1 / (1 + np.exp(-public)) if probability else public
        noisy = public * (1 + 1e-15 * random.integers(-2, 3, size=300))
        first, second = (
            edges_from_public(one, bins=256, probability=probability) for one in (public, noisy)
        )
        assert np.array_equal(first, second)


def test_edges_cover_more_than_the_public_range():
    """Two spreads of margin on either side; probabilities stay inside 0 and 1."""
    public = np.random.default_rng(1).normal(size=300)
    edges = edges_from_public(public, bins=256, probability=False)
    assert edges[0] < public.min() - 1.5
    assert edges[-1] > public.max() + 1.5
    inside = edges_from_public(1 / (1 + np.exp(-public)), bins=256, probability=True)
    assert inside[0] > 0
    assert inside[-1] < 1


def test_edges_follow_the_public_density():
    """No cell holds more than four times its share of a fresh sample of the same law."""
    random = np.random.default_rng(2)
    edges = edges_from_public(random.standard_t(5, size=300), bins=256, probability=False)
    fresh = np.histogram(random.standard_t(5, size=200_000), bins=edges)[0]
    assert fresh.max() <= 4 * 200_000 / 256


def test_score_that_rows_share_gets_a_cell_of_its_own():
    """The cell starts at the score and ends at the next float."""
    public = np.concatenate([np.random.default_rng(3).normal(size=40), np.full(3, 0.25)])
    edges = edges_from_public(public, bins=64, probability=False)
    place = int(np.flatnonzero(edges == 0.25)[0])
    assert edges[place + 1] == np.nextafter(0.25, 1)


@settings(max_examples=50)
@given(value=st.floats(-4, 4))
def test_snapped_threshold_is_accepted_and_near(value):
    """snap gives the grid point below, at most a step away inside the edges."""
    snapped = snap_to_grid(value, EDGES)
    assert is_on_grid(snapped, EDGES)
    assert snapped <= value
    assert snap_to_grid(snapped, EDGES) == snapped
    if EDGES[0] <= value <= EDGES[-1]:
        assert value - snapped <= (EDGES[1] - EDGES[0]) / PARTS


def test_snap_of_extremes():
    """Below the edges −∞, above them the last, infinities as they are, NaN refused."""
    inf = float("inf")
    assert snap_to_grid(-3.5, EDGES) == -inf
    assert (snap_to_grid(-3.0, EDGES), snap_to_grid(3.0, EDGES), snap_to_grid(99.0, EDGES)) == (
        -3.0,
        3.0,
        3.0,
    )
    assert (snap_to_grid(inf, EDGES), snap_to_grid(-inf, EDGES)) == (inf, -inf)
    with pytest.raises(NonFiniteError, match="NaN"):
        snap_to_grid(float("nan"), EDGES)


def test_threshold_off_the_grid_is_not_accepted():
    """A threshold between two grid points would single out samples."""
    point = float(threshold_grid(EDGES)[5])
    assert is_on_grid(point, EDGES)
    assert not is_on_grid(float(np.nextafter(point, 1)), EDGES)
    assert not is_on_grid(float("nan"), EDGES)
    assert is_on_grid(float("-inf"), EDGES)
    assert is_on_grid(float("inf"), EDGES)
    assert len(threshold_grid(EDGES)) == PARTS * (len(EDGES) - 1) + 1
