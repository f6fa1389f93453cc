"""Laws of score summaries."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.curation.errors import EmptySummaryError, NonFiniteError, ProtocolError
from fedwinnow.curation.scores.cell_groups import group_cells, number_of_groups, public_mass
from fedwinnow.curation.scores.histogram import (
    empty_summary,
    merge_summaries,
    quantile,
    rank_error_bound,
    share_above,
    summarise,
)
from fedwinnow.curation.scores.histogram_edges import edges_from_public, snap_to_grid
from fedwinnow.curation.scores.rounded_counts import round_count, round_known_group

EDGES = np.linspace(-3.0, 3.0, 13)
SCORES = st.lists(st.floats(-10, 10), max_size=60).map(lambda v: np.array(v, dtype=np.float64))


@given(scores=SCORES, smallest=st.integers(1, 9), step=st.integers(1, 7))
def test_summary_tells_rounded_counts_of_large_groups(scores, smallest, step):
    """Oracle: each group's count by hand, 0 below the smallest cell; the total is of steps."""
    found = summarise(scores, EDGES, smallest_cell=smallest, step=step)
    number = number_of_groups(
        12, samples=round_count(len(scores), step), smallest_cell=smallest, step=step, most=14
    )
    groups = group_cells(public_mass(EDGES), number)
    cells = np.searchsorted(EDGES, scores, side="right")
    expected = [int((groups[cells] == group).sum()) for group in range(number + 2)]
    told = [round_count(n, step) if n >= smallest else 0 for n in expected]
    assert np.bincount(groups, weights=found.counts) == pytest.approx(told)
    assert found.total == pytest.approx(sum(told))


@given(
    scores=st.lists(st.floats(-10, 10), min_size=1, max_size=200),
    other=st.floats(-10, 10),
    smallest=st.integers(1, 12),
    step=st.integers(2, 12),
    public=SCORES,
)
def test_summary_of_one_other_score_differs_in_two_groups_by_one_step(
    scores, other, smallest, step, public
):
    """Law: two data sets that differ in one sample differ in at most two groups.

    The borders are the same; each differs by one step, or by the least count that is told.
    """
    one, two = np.array(scores), np.array([other, *scores[1:]])
    told = {"smallest_cell": smallest, "step": step, "public_scores": public}
    first, second = (summarise(values, EDGES, **told) for values in (one, two))
    number = number_of_groups(
        12, samples=round_count(len(scores), step), smallest_cell=smallest, step=step, most=14
    )
    groups = group_cells(public_mass(EDGES, public), number)
    changes = np.abs(np.bincount(groups, weights=first.counts - second.counts))
    assert (changes > 1e-9).sum() <= 2
    least = max(step, round_count(smallest, step))
    assert changes.max() <= least + 1e-9


@given(
    scores=SCORES.filter(len), step=st.integers(1, 20), threshold=st.sampled_from(EDGES.tolist())
)
def test_kept_counts_of_neighbours_are_alike_or_one_step_apart(scores, step, threshold):
    """Law: whatever the threshold, one sample more moves a kept count by at most one step.

    Zero and every count up to half a step are alike.
    """
    kept = int((scores >= threshold).sum())
    one_less = int((scores[1:] >= threshold).sum())
    assert abs(round_count(kept, step) - round_count(one_less, step)) in {0, step}
    assert abs(round_count(kept, step) - kept) <= step / 2
    assert round_count(step // 2, step) == 0
    assert round_known_group(one_less, step) >= (step if step > 1 else one_less)


def test_rounding_goes_to_the_even_multiple_at_halves():
    """Edge: 5 of 10 is few, 15 and 25 are both 20; a step of 1 is exact."""
    assert [round_count(n, 10) for n in (0, 1, 5, 6, 15, 25, 26)] == [0, 0, 0, 10, 20, 20, 30]
    assert [round_known_group(n, 10) for n in (0, 1, 14)] == [10, 10, 10]
    assert [round_known_group(n, 1) for n in (0, 3)] == [0, 3]


@given(parts=st.lists(SCORES, min_size=3, max_size=3), smallest=st.integers(1, 9))
def test_summary_merge_is_associative_commutative_and_has_a_zero(parts, smallest):
    """Any order exactly, any grouping up to rounding, and no sample changes nothing."""
    one, two, three = (summarise(part, EDGES, smallest_cell=smallest) for part in parts)
    whole = merge_summaries([one, two, three])
    assert np.array_equal(merge_summaries([three, one, two]).counts, whole.counts)
    for grouped in (
        merge_summaries([merge_summaries([one, two]), three]),
        merge_summaries([one, merge_summaries([two, three])]),
    ):
        assert np.allclose(grouped.counts, whole.counts, rtol=1e-12)
        assert grouped.largest_merged == whole.largest_merged
    assert np.array_equal(merge_summaries([one, empty_summary(EDGES)]).counts, one.counts)
    assert whole.total == pytest.approx(one.total + two.total + three.total)


@given(parts=st.lists(SCORES, min_size=1, max_size=4))
def test_summary_merge_of_filled_cells_is_the_pooled_histogram(parts):
    """Where no cell is merged, the sum is exactly that of all scores together."""
    fill = np.concatenate([[EDGES[0] - 1], EDGES])
    parts = [np.concatenate([part, fill]) for part in parts]
    merged = merge_summaries([summarise(part, EDGES, smallest_cell=1) for part in parts])
    pooled = np.concatenate(parts)
    bounds = np.concatenate([[-np.inf], EDGES, [np.inf]])
    expected = [((pooled >= a) & (pooled < b)).sum() for a, b in itertools.pairwise(bounds)]
    assert np.array_equal(merged.counts, expected)
    assert merged.largest_merged == 0


def test_summary_of_small_site_is_one_group():
    """Edge: a site below the smallest cell tells 0; one that just reaches it tells its number."""
    assert summarise(np.array([0.1, 2.0]), EDGES, smallest_cell=5).total == 0
    found = summarise(np.array([0.1, 2.0, 2.0, 2.5, 2.6]), EDGES, smallest_cell=5)
    assert np.allclose(found.counts, [0.0, *[5 / 12] * 12, 0.0])
    assert found.largest_merged == 5


def test_summary_below_the_public_range_keeps_all_rather_than_none():
    """Edge: underflow and overflow are groups of their own, so a cut there is −inf or the last."""
    told = {"smallest_cell": 8, "step": 10}
    low = summarise(np.full(60, -9.0), EDGES, **told)
    assert quantile(low, 0.6) == float("-inf")
    assert quantile(summarise(np.full(60, 9.0), EDGES, **told), 0.6) == EDGES[-1]


def test_small_sites_get_thinner_groups():
    """Oracle: 60 samples make 3 groups, 200 make 8, 800 make 20, at steps of 10."""
    told = {"smallest_cell": 8, "step": 10, "most": 256}
    found = [number_of_groups(256, samples=n, **told) for n in (0, 10, 60, 200, 800, 50_000)]
    assert found == [1, 1, 3, 8, 20, 256]
    assert number_of_groups(256, samples=800, smallest_cell=8, step=10, most=5) == 5
    assert number_of_groups(256, samples=3, smallest_cell=1, step=1, most=256) == 256


def test_summary_leaves_out_nan_and_refuses_infinity():
    """NaN means no score; an infinity is a scorer's fault."""
    found = summarise(np.array([np.nan, 1.0]), EDGES, smallest_cell=1)
    assert found.total == pytest.approx(1)
    assert summarise(np.array([np.nan]), EDGES, smallest_cell=1).total == 0
    with pytest.raises(NonFiniteError, match="1 infinities"):
        summarise(np.array([np.inf]), EDGES, smallest_cell=1)


def test_merge_of_nothing_or_of_other_edges_is_refused():
    """No site, or sites that derived other edges."""
    with pytest.raises(EmptySummaryError):
        merge_summaries([])
    one = summarise(np.ones(3), EDGES, smallest_cell=1)
    with pytest.raises(ProtocolError, match="edges"):
        merge_summaries([one, summarise(np.ones(3), EDGES * 2, smallest_cell=1)])


@pytest.mark.parametrize("kind", ["normal", "student", "logistic"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_threshold_of_256_bins_has_rank_error_below_a_thousandth(kind, seed):
    """Eight uneven sites, N = 20,000, edges from 400 public scores: ≤ 0.1 % of all samples."""
    random = np.random.default_rng(seed)
    draw = {
        "normal": lambda n: random.normal(size=n),
        "student": lambda n: random.standard_t(5, size=n),
        "logistic": lambda n: 1 / (1 + np.exp(-random.normal(0.5, 1.5, size=n))),
    }[kind]
    public = draw(400)
    edges = edges_from_public(public, bins=256, probability=kind == "logistic")
    sizes = np.maximum(100, (random.dirichlet(np.ones(8)) * 20_000).astype(int))
    sizes[0] += max(0, 20_000 - sizes.sum())
    scores = [draw(size) for size in sizes]
    merged = merge_summaries([summarise(one, edges, smallest_cell=1) for one in scores])
    pooled = np.concatenate(scores)
    for share in np.linspace(0.05, 0.95, 19):
        threshold = snap_to_grid(quantile(merged, share), edges)
        assert abs((pooled >= threshold).mean() - share) <= 1e-3


def test_quantile_and_share_are_inverse_inside_the_edges():
    """share_above(quantile(share)) = share."""
    scores = np.random.default_rng(0).normal(size=5000)
    found = summarise(scores, EDGES, smallest_cell=1)
    for share in (0.1, 0.5, 0.9):
        assert share_above(found, quantile(found, share)) == pytest.approx(share)
    assert share_above(found, float("-inf")) == 1.0


def test_quantile_of_an_empty_summary_is_refused():
    """No sample, no quantile; its rank error is none."""
    with pytest.raises(EmptySummaryError):
        quantile(empty_summary(EDGES), 0.5)
    assert rank_error_bound(empty_summary(EDGES)) == 0.0


def test_quantile_in_the_open_cells_keeps_at_least_the_share():
    """In the underflow −∞, in the overflow the last edge: never a made-up number."""
    outside = summarise(
        np.array([-9.0, -8.0, 0.1, 8.0, 9.0]), np.array([0.0, 1.0]), smallest_cell=1
    )
    assert quantile(outside, 1.0) == float("-inf")
    assert quantile(outside, 0.2) == 1.0
    assert 0.0 <= quantile(outside, 0.5) < 1.0


def test_quantile_never_cuts_above_a_score_that_has_its_own_cell():
    """Half of all samples share one score: asking for a quarter keeps that score."""
    public = np.concatenate([np.full(10, 0.5), np.linspace(0.1, 0.9, 31)])
    edges = edges_from_public(public, bins=64, probability=True)
    random = np.random.default_rng(0)
    scores = np.concatenate([np.full(500, 0.5), random.uniform(0.1, 0.9, size=500)])
    found = summarise(scores, edges, smallest_cell=1)
    assert snap_to_grid(quantile(found, 0.5), edges) == 0.5


@pytest.mark.parametrize(("smallest", "step"), [(1, 1), (5, 1), (20, 1), (8, 10), (3, 10)])
def test_rank_error_stays_below_its_bound(smallest, step):
    """Law: grouped, rounded and told as 0 or not, at every share, at small and uneven sites."""
    random = np.random.default_rng(smallest)
    edges = edges_from_public(random.normal(size=200), bins=256, probability=False)
    sites = [random.normal(i / 4, 1, size=size) for i, size in enumerate((48, 300, 90))]
    told = {"smallest_cell": smallest, "step": step}
    merged = merge_summaries([summarise(one, edges, **told) for one in sites])
    pooled, bound = np.concatenate(sites), rank_error_bound(merged)
    assert 0 < bound < 1
    for share in np.linspace(0.05, 0.95, 37):
        threshold = snap_to_grid(quantile(merged, share), edges)
        assert abs((pooled >= threshold).mean() - share) <= bound
        here = rank_error_bound(merged, threshold)
        assert abs((pooled >= threshold).mean() - share_above(merged, threshold)) <= here <= bound


@pytest.mark.parametrize(("edges", "smallest"), [(EDGES, 0), (EDGES[::-1], 1), (EDGES[:0], 1)])
def test_summary_refuses_edges_and_cells_that_make_no_sense(edges, smallest):
    """A smallest cell below 1, or edges that do not ascend."""
    with pytest.raises(ProtocolError, match="smallest_cell"):
        summarise(np.zeros(3), edges.copy(), smallest_cell=smallest)
