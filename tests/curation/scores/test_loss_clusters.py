"""Laws of clusters: federated is pooled, quotas are fair, and no sum tells of a few."""

from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.curation.scores import loss_clusters as c

SEEDS = st.integers(0, 2**32 - 1)
COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=12)


def drawn(seed, rows, checkpoints=2, *, lattice=False):
    """Made-up trajectories; on a lattice many of them are equal, or as near to two centroids."""
    draw = np.random.default_rng(seed)
    points = draw.normal(size=(rows, checkpoints)) + draw.integers(-2, 3, size=(rows, 1))
    return np.clip(np.round(points) if lattice else points, -c.BOUND, c.BOUND)


def split_up(points, seed, sites):
    """Silos of the points; some of them may be empty."""
    owner = np.random.default_rng(seed).integers(0, sites, size=len(points))
    return [points[owner == site] for site in range(sites)]


def lloyd(points, centroids, iterations):
    """Plain k-means on one list of points, sample by sample."""
    centroids = centroids.copy()
    for _ in range(iterations):
        groups = [[] for _ in centroids]
        for point in points:
            apart = [float(((point - centre) ** 2).sum()) for centre in centroids]
            groups[apart.index(min(apart))].append(point)
        for k, group in enumerate(groups):
            if group:
                centroids[k] = np.mean(group, axis=0)
    return centroids


@given(SEEDS, st.integers(0, 60), st.integers(1, 5), st.integers(1, 6), st.booleans())
def test_clusters_federated_centroids_are_pooled_ones(seed, rows, sites, count, lattice):
    """Oracle: with cells of any size, exchanges over silos are Lloyd's steps on all samples."""
    points = drawn(seed, rows, lattice=lattice)
    begun = c.initial_centroids(drawn(seed + 1, 20, lattice=lattice), count, seed)
    silos, centroids = split_up(points, seed, sites), begun
    earlier = [[] for _ in silos]
    for _ in range(4):
        said = []
        for silo, past in zip(silos, earlier, strict=True):
            past.append(c.assign_in_groups(silo, centroids, past, smallest=1))
            said.append(c.cluster_sums(silo, past[-1], len(begun)))
        centroids = c.update_centroids(centroids, sum(n for n, _ in said), sum(s for _, s in said))
    assert np.abs(centroids - lloyd(points, begun, 4)).max() <= 1e-6


def test_clusters_far_apart_are_pooled_ones_whatever_the_smallest_cell():
    """Where every cell is large enough, nothing is merged and the smallest cell changes nothing."""
    points = np.concatenate([drawn(1, 30) / 9 - 6, drawn(2, 30) / 9, drawn(3, 30) / 9 + 6])
    begun, earlier = points[[0, 40, 70]], []
    for _ in range(3):
        earlier.append(c.assign_in_groups(points, begun, earlier, smallest=20))
        assert np.array_equal(earlier[-1], c.nearest_centroids(points, begun))
        begun = c.update_centroids(begun, *c.cluster_sums(points, earlier[-1], 3))
    assert np.abs(begun - lloyd(points, points[[0, 40, 70]], 3)).max() <= 1e-6


@given(SEEDS, st.integers(1, 60), st.integers(1, 12), st.integers(1, 6), st.booleans())
def test_clusters_no_difference_of_sums_tells_of_few(seed, rows, smallest, rounds, lattice):
    """Every cell of every exchange is made of the same groups, each at least the smallest cell.

    Whoever asks chooses the centroids freely, so these are drawn anew in each exchange.
    """
    points, earlier = drawn(seed, rows, lattice=lattice), []
    for number in range(rounds):
        asked = drawn(seed + number, 5)
        earlier.append(c.assign_in_groups(points, asked, earlier, smallest=smallest))
    _, groups = np.unique(np.stack(earlier), axis=1, return_counts=True)
    assert len(groups) == 1 or groups.min() >= smallest
    assert groups.sum() == rows


def test_clusters_small_groups_go_to_the_next_nearest():
    """One sample near a far centroid joins the neighbour whose cell is large enough."""
    points = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [3.9]])
    centroids = np.array([[0.0], [5.0], [3.9], [8.0]])
    assert c.assign_in_groups(points, centroids, [], smallest=1).tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert c.assign_in_groups(points, centroids, [], smallest=3).tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_clusters_one_sample_that_moves_stays_with_its_group():
    """The second exchange would move one sample: the difference of sums would be that sample."""
    points = np.array([[0.0], [0.1], [2.4], [5.0], [5.1], [5.2]])
    first = c.assign_in_groups(points, np.array([[0.0], [5.0]]), [], smallest=3)
    moved = c.nearest_centroids(points, np.array([[0.0], [4.0]]))
    assert (moved != first).tolist() == [False, False, True, False, False, False]
    again = c.assign_in_groups(points, np.array([[0.0], [4.0]]), [first], smallest=3)
    assert np.array_equal(again, first)


def test_clusters_ties_go_to_the_first_centroid_whatever_comes_with_them():
    """A sample between two centroids, and equal centroids: always the first; in parts as whole."""
    points = drawn(0, 20_000, lattice=True)
    centroids = np.array([[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]])
    whole = c.nearest_centroids(points, centroids)
    assert not (whole == 2).any()
    assert c.nearest_centroids(np.array([[1.0, 1.0]]), centroids).tolist() == [0]
    parts = [
        c.nearest_centroids(points[i : i + 777], centroids) for i in range(0, len(points), 777)
    ]
    assert np.array_equal(np.concatenate(parts), whole)


def test_clusters_start_is_repeatable_and_made_of_public_rows():
    """The same rows and seed, the same start; public rows that differ, as many as there are."""
    rows = drawn(4, 30)
    begun = c.initial_centroids(rows, 8, 5)
    assert np.array_equal(begun, c.initial_centroids(rows.copy(), 8, 5))
    assert all((rows == centre).all(axis=1).any() for centre in begun)
    assert len(np.unique(begun, axis=0)) == 8
    few = np.repeat(drawn(1, 2), 5, axis=0)
    assert len(c.initial_centroids(few, 8, 5)) == 2
    assert len(c.initial_centroids(few[:1], 8, 5)) == 1


def test_clusters_standardise_by_public_rows_alone():
    """Public mean and spread; a column without spread is only moved; bounded; NaN stays."""
    public = np.array([[1.0, 3.0], [3.0, 3.0]], dtype=np.float32)
    losses = np.array([[2.0, 3.5], [99.0, 3.0], [np.nan, 3.0]], dtype=np.float32)
    found = c.standardise_losses(losses, public)
    assert found[:2].tolist() == [[0.0, 0.5], [c.BOUND, 0.0]]
    assert np.isnan(found[2, 0])


@given(SEEDS, st.integers(0, 60), st.integers(1, 10))
def test_clusters_rounding_down_keeps_every_mean(seed, rows, step):
    """Counts become multiples that are no larger; sums over counts stay what they were."""
    points = drawn(seed, rows)
    counts, totals = c.cluster_sums(points, c.nearest_centroids(points, drawn(seed + 1, 4)), 4)
    told, means = c.round_down(counts, totals, step)
    assert ((told % step == 0) & (told <= counts) & (told > counts - step)).all()
    held = told > 0
    assert np.allclose(means[held] / told[held, None], totals[held] / counts[held, None])
    assert not means[~held].any()
    if step == 1:
        assert np.array_equal(means, totals)


def greedy(counts, budget):
    """One sample at a time to the cluster with the fewest; ties: the larger, then the later."""
    quotas = [0] * len(counts)
    for _ in range(budget):
        left = [k for k in range(len(counts)) if quotas[k] < counts[k]]
        quotas[min(left, key=lambda k: (quotas[k], -counts[k], -k))] += 1
    return tuple(quotas)


@given(COUNTS, st.floats(0.0, 1.0, exclude_min=True))
def test_clusters_filling_is_a_slow_greedy_loop(counts, share):
    """Oracle: equal shares, smallest clusters first; sums to the budget, never beyond a count."""
    budget = c.samples_to_keep(counts, share)
    quotas = c.fill_quotas(counts, budget)
    assert sum(quotas) == budget
    assert all(0 <= quota <= count for quota, count in zip(quotas, counts, strict=True))
    assert quotas == greedy(counts, budget)
    assert budget == 0 if sum(counts) == 0 else 1 <= budget <= sum(counts)


@given(st.lists(COUNTS, min_size=1, max_size=5), st.floats(0.0, 1.0, exclude_min=True))
def test_clusters_sites_quotas_sum_to_the_budget(rows, share):
    """Over all sites a cluster's quota comes out whole, and no site keeps more than it told."""
    number = min(map(len, rows))
    counts = {f"site-{i}": row[:number] for i, row in enumerate(rows)}
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    quotas = c.fill_quotas(totals, c.samples_to_keep(totals, share))
    extra = c.extra_by_site(quotas, counts)
    own = {
        site: c.site_quotas(held, totals, quotas, extra.get(site, ()))
        for site, held in counts.items()
    }
    assert tuple(map(sum, zip(*own.values(), strict=True))) == quotas
    for site, held in counts.items():
        assert all(q <= n for q, n in zip(own[site], held, strict=True))


def test_clusters_largest_remainder_ties_go_by_name():
    """Three sites of equal counts and a quota of four: the first by name gets the odd one."""
    extra = c.extra_by_site([4, 0], {"b": [3, 0], "a": [3, 0], "c": [3, 0]})
    assert extra == {"a": (0,)}
    assert c.site_quotas([3, 0], [9, 0], [4, 0], extra["a"]) == (2, 0)


def test_clusters_site_that_was_not_counted_keeps_the_others_share():
    """A site that comes back keeps the share of its own; all of a cluster that nobody else has."""
    assert c.site_quotas([10, 3], [40, 0], [20, 0], ()) == (5, 3)


def test_clusters_keep_the_best_and_break_ties_by_id():
    """Highest scores in each cluster; equal scores by id; who is in no cluster is never kept."""
    places = np.array([0, 0, 0, 1, 1, -1])
    scores = np.array([0.5, 0.9, 0.5, 0.1, 0.2, 1.0])
    kept = c.select_best(scores, ("b", "x", "a", "c", "d", "e"), places, (2, 1))
    assert kept.tolist() == [False, True, True, False, True, False]


@pytest.mark.parametrize("seed", range(3))
def test_clusters_rare_skills_gain_at_equal_budget(seed):
    """Of a set with 90 % copies of one skill, equal quotas keep more of the rare than chance does.

    Three skills with trajectories of their own; rare ones hold 5 % each.
    """
    draw = np.random.default_rng(seed)
    skills = np.repeat([0, 1, 2], [900, 50, 50])
    centres = np.array([[0.0, -1.0], [3.0, 2.5], [-3.0, 2.0]])
    points = centres[skills] + draw.normal(scale=0.4, size=(1000, 2))
    public = centres[np.repeat([0, 1, 2], 30)] + draw.normal(scale=0.4, size=(90, 2))
    centroids, scores = c.initial_centroids(public, 6, seed), draw.uniform(size=1000)
    silos = np.array_split(draw.permutation(1000), 4)
    for _ in range(8):
        places = [c.nearest_centroids(points[rows], centroids) for rows in silos]
        said = [c.cluster_sums(points[r], p, 6) for r, p in zip(silos, places, strict=True)]
        last, centroids = (
            centroids,
            c.update_centroids(centroids, *map(sum, zip(*said, strict=True))),
        )
    places = c.nearest_centroids(points, last)
    quotas = c.fill_quotas(np.bincount(places, minlength=6).tolist(), 200)
    kept = c.select_best(scores, [f"{i}" for i in range(1000)], places, quotas)
    plain = np.argsort(-scores)[:200]
    assert kept.sum() == len(plain)
    assert (skills[kept] > 0).mean() > 2 * (skills[plain] > 0).mean()


def test_clusters_of_no_sample_are_empty():
    """Edge: no sample gives counts and sums of 0, and moves no centroid."""
    none, centroids = np.zeros((0, 2)), drawn(0, 3)
    places = c.assign_in_groups(none, centroids, [], smallest=5)
    counts, totals = c.cluster_sums(none, places, 3)
    assert counts.tolist() == [0, 0, 0]
    assert not totals.any()
    assert np.array_equal(c.update_centroids(centroids, counts, totals), centroids)
    assert c.fill_quotas([0, 0, 0], c.samples_to_keep([0, 0, 0], 0.5)) == (0, 0, 0)
    assert reduce(lambda x, y: x + y, c.extra_by_site([0], {"a": [0]}).values(), ()) == ()
