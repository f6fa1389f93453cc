"""Messages of runs with clusters of loss trajectories (S2L)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.protocol.header import Header


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRequest:
    """Which samples above the threshold are nearest to which centroid: one exchange of k-means."""

    header: Header
    """Its round counts the exchanges, from 1."""
    threshold: float
    """The one that the selection will apply, in every exchange alike."""
    per_site: Mapping[str, float]
    centroids: Float[np.ndarray, "clusters checkpoints"]
    """Standardised losses; those of round 1 follow from the agreed public rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterReply:
    """What each cluster holds at a site, in groups of at least its smallest cell."""

    header: Header
    site: str
    counts: tuple[int, ...]
    """Samples of each cluster, rounded down."""
    sums: Float[np.ndarray, "clusters checkpoints"]
    """The cluster's mean trajectory at this site times its count, float64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRequest:
    """Apply the threshold, then keep the best of each cluster up to the site's share of its quota.

    Holds sums over sites: what a site keeps follows from them, from the terms and its own counts.
    """

    header: Header
    threshold: float
    per_site: Mapping[str, float]
    totals: tuple[int, ...]
    """Samples of each cluster over all sites, as they told them."""
    extra: Mapping[str, tuple[int, ...]]
    """Site → clusters in which it keeps one more: largest remainders."""
