"""Cluster loss trajectories and give the clusters equal quotas (S2L), from sites' sums and counts.

A sample's trajectory is its loss at the checkpoints 0..T, standardised by the PUBLIC rows and cut
at ``BOUND`` spreads. With s over the sites, one exchange of k-means is Lloyd's step on all samples
together, as sums add up::

    n_ks = |{i at s : k = argmin_j ‖z_i − c_j‖²}|     m_ks = Σ of their z_i
    c_k ← Σ_s m_ks / Σ_s n_ks                         an empty cluster stays where it is

A budget B is filled equally, smallest clusters first, and each quota Q_k is split by counts::

    Q_k = min(N_k, ⌊rest of B / clusters that are left⌋)     N_k = Σ_s n_ks
    q_ks = ⌊Q_k n_ks / N_k⌋, and one more where the remainder is largest, ties by site name

Sums of two exchanges must not differ by few samples: samples that were together in every cell so
far are separated only in groups of at least the smallest cell (:func:`assign_in_groups`). So every
cell of every exchange is made of the same groups, and no difference of sums reveals fewer samples.

This is own code because a library's k-means needs the samples: here only counts and sums are
exchanged, under the rules of disclosure above.

Reference:
    Y. Yang et al., SmallToLarge (S2L), NeurIPS 2024, section 4, https://arxiv.org/abs/2403.07384;
    start: D. Arthur and S. Vassilvitskii, k-means++, SODA 2007.
    Differs from the paper: small cells are merged, the start is drawn from PUBLIC rows, all sources
    are clustered together, and within a cluster the best scores are kept, not a random draw.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from fedwinnow.curation.datatypes import Trajectory

BOUND = 8.0
"""Largest standardised loss, in spreads of the public rows: the most one sample adds to a sum."""
_TINY = 1e-12
_ROWS = 8192

Points = Float[np.ndarray, "samples checkpoints"]
Centroids = Float[np.ndarray, "clusters checkpoints"]
Places = Int[np.ndarray, " samples"]
"""The cluster of each sample, from 0."""


def loss_trajectories(trajectory: Trajectory) -> Points:
    """Return the mean token loss of each row at each checkpoint, nats."""
    columns = [table.columns["loss"].astype(np.float64) for table in trajectory]
    return np.stack(columns, axis=1)


def standardise_losses(
    losses: Float[np.ndarray, "samples checkpoints"],
    public: Float[np.ndarray, "rows checkpoints"],
) -> Points:
    """Standardise losses by the public rows' mean and spread, within ±``BOUND``; NaN stays NaN."""
    rows = public.astype(np.float64)
    spread = rows.std(axis=0)
    scale = np.where(spread > _TINY, spread, 1.0)
    values = (losses.astype(np.float64) - rows.mean(axis=0)) / scale
    return np.asarray(np.clip(values, -BOUND, BOUND))


def initial_centroids(
    public: Float[np.ndarray, "rows checkpoints"], count: int, seed: int
) -> Centroids:
    """Choose centroids by k-means++ on standardised public rows; they are the same at every site.

    There are fewer than ``count`` where fewer rows differ from each other.
    """
    draw = np.random.default_rng(seed)
    chosen = [int(draw.integers(len(public)))]
    apart = _squares(public, public[chosen[-1:]])[:, 0]
    while len(chosen) < count and apart.max() > _TINY:
        chosen.append(int(draw.choice(len(public), p=apart / apart.sum())))
        apart = np.minimum(apart, _squares(public, public[chosen[-1:]])[:, 0])
    return np.asarray(public[chosen])


def nearest_centroids(points: Points, centroids: Centroids) -> Places:
    """Return the nearest centroid of each sample; ties go to the first."""
    found = np.zeros(len(points), dtype=np.int64)
    for low in range(0, len(points), _ROWS):
        part = slice(low, low + _ROWS)
        found[part] = _squares(points[part], centroids).argmin(axis=1)
    return found


def assign_in_groups(
    points: Points,
    centroids: Centroids,
    earlier: Sequence[Places],
    *,
    smallest: int,
) -> Places:
    """Assign samples to nearest centroids, separating no group of fewer than ``smallest`` samples.

    Samples that were together in every earlier partition may now go to several clusters. A group
    that is too small is dissolved: each of its samples goes to the nearest of the other groups'
    clusters. The smallest group is first (ties: the first cluster), until all are large enough or
    one is left.

    Args:
        points: Standardised trajectories of one site.
        centroids: Centroids of this exchange.
        earlier: Partitions of the same samples that were reported before.
        smallest: Fewest samples of a group, at least 1.
    """
    found = nearest_centroids(points, centroids)
    if smallest <= 1 or len(points) == 0:
        return found
    history = np.stack([np.zeros(len(points), dtype=np.int64), *earlier], axis=1)
    _, atoms = np.unique(history, axis=0, return_inverse=True)
    order = np.argsort(atoms.ravel(), kind="stable")
    ends = np.flatnonzero(np.diff(atoms.ravel()[order])) + 1
    for rows in np.split(order, ends):
        held = np.bincount(found[rows], minlength=len(centroids))
        open_ = held > 0
        while open_.sum() > 1 and held[open_].min() < smallest:
            least = int(np.argmin(np.where(open_, held, len(points) + 1)))
            open_[least] = False
            homeless = rows[found[rows] == least]
            allowed = np.flatnonzero(open_)
            found[homeless] = allowed[nearest_centroids(points[homeless], centroids[allowed])]
            held = np.bincount(found[rows], minlength=len(centroids))
    return found


def cluster_sums(
    points: Points, places: Places, count: int
) -> tuple[Int[np.ndarray, " clusters"], Float[np.ndarray, "clusters checkpoints"]]:
    """Return how many samples each cluster holds, and the sum of their trajectories."""
    columns = [np.bincount(places, weights=column, minlength=count) for column in points.T]
    held = np.bincount(places, minlength=count).astype(np.int64)
    return held, np.stack(columns, axis=1).astype(np.float64)


def round_down(
    counts: Int[np.ndarray, " clusters"],
    totals: Float[np.ndarray, "clusters checkpoints"],
    step: int,
) -> tuple[Int[np.ndarray, " clusters"], Float[np.ndarray, "clusters checkpoints"]]:
    """Round counts down to multiples of ``step``, and scale sums to match: cell means stay."""
    told = counts // step * step
    scale = np.divide(told, counts, out=np.zeros(len(counts)), where=counts > 0)
    return told, np.asarray(totals * scale[:, None])


def update_centroids(
    centroids: Centroids,
    counts: Int[np.ndarray, " clusters"],
    totals: Float[np.ndarray, "clusters checkpoints"],
) -> Centroids:
    """Return the means of the clusters; the centroid of an empty one stays where it is."""
    held = counts[:, None] > 0
    return np.asarray(np.where(held, totals / np.maximum(counts, 1)[:, None], centroids))


def samples_to_keep(counts: Sequence[int], share: float) -> int:
    """Return how many counted samples to keep: the nearest whole number, at least 1 of any."""
    total = sum(counts)
    return min(total, max(1, round(share * total)))


def fill_quotas(counts: Sequence[int], budget: int) -> tuple[int, ...]:
    """Split a budget into equal quotas; what a small cluster lacks goes to the larger ones.

    Quotas are filled smallest clusters first.

    Args:
        counts: Samples of each cluster, at least 0.
        budget: Sum of the quotas, at most that of the counts.
    """
    quotas = [0] * len(counts)
    order = sorted(range(len(counts)), key=lambda k: (counts[k], k))
    for number, k in enumerate(order):
        quotas[k] = min(counts[k], budget // (len(order) - number))
        budget -= quotas[k]
    return tuple(quotas)


def extra_by_site(
    quotas: Sequence[int], counts: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """Return site → clusters in which it keeps one more than the floor of its share.

    Largest remainders of Q_k n_ks / N_k, ties by name of the site; sites without any are left out.
    """
    found: dict[str, list[int]] = {}
    for k, quota in enumerate(quotas):
        held = {site: counts[site][k] for site in sorted(counts)}
        total = sum(held.values())
        if total == 0:
            continue
        rest = quota - sum(quota * count // total for count in held.values())
        ranked = sorted(held, key=lambda site: (-(quota * held[site] % total), site))
        for site in ranked[:rest]:
            found.setdefault(site, []).append(k)
    return {site: tuple(found[site]) for site in sorted(found)}


def site_quotas(
    counts: Sequence[int],
    totals: Sequence[int],
    quotas: Sequence[int],
    extra: Sequence[int],
) -> tuple[int, ...]:
    """Return how many samples of each cluster a site keeps.

    Args:
        counts: The site's own, as it reported them; one that reported none keeps the same share.
        totals: Of all sites that reported counts; where a total is 0 the share is 1.
        quotas: Of all sites together.
        extra: Clusters in which this site keeps one more.
    """
    shares = [
        n if total == 0 else quota * n // total
        for n, total, quota in zip(counts, totals, quotas, strict=True)
    ]
    return tuple(
        min(n, q + (k in extra)) for k, (n, q) in enumerate(zip(counts, shares, strict=True))
    )


def select_best(
    scores: Float[np.ndarray, " samples"],
    ids: Sequence[str],
    places: Places,
    quotas: Sequence[int],
) -> Bool[np.ndarray, " samples"]:
    """Mark each cluster's samples with the highest scores, ties by id; place −1 is never kept."""
    kept = np.zeros(len(places), dtype=bool)
    for k, quota in enumerate(quotas):
        rows = np.flatnonzero(places == k).tolist()
        kept[sorted(rows, key=lambda i: (-scores[i], ids[i], i))[:quota]] = True
    return kept


def _squares(points: Points, centroids: Centroids) -> Float[np.ndarray, "samples clusters"]:
    """Return squared distances, summed by checkpoint: the same whatever rows are in a block."""
    found = np.zeros((len(points), len(centroids)))
    for column, centre in zip(points.T, centroids.T, strict=True):
        found += (column[:, None] - centre[None, :]) ** 2
    return found
