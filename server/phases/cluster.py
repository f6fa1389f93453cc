"""Clusters at the server: k-means from the sites' sums, then quotas (``curation/scores/loss_clusters.py``)."""

import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.protocol.messages import (
    ClusterReply,
    ClusterRequest,
    Header,
    QuotaRequest,
    Reply,
)
from fedwinnow.curation.scores import loss_clusters
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.server.state import Clusters, RoundRecord, RunState, given

logger = logging.getLogger(__name__)


def begin(state: RunState, config: RunConfig) -> Clusters:
    """The start: a function of the agreed public rows and the seed, as every site computes it."""
    rows = loss_clusters.losses_of(state.tables)
    seed = derive_seed(config.run.seed, "clusters")
    centroids = loss_clusters.start(
        loss_clusters.standardised(rows, rows), config.clusters.count, seed
    )
    if len(centroids) < config.clusters.count:
        words = "clusters.count is %d, but only %d public rows differ in their losses"
        logger.warning(words, config.clusters.count, len(centroids))
    return Clusters(centroids=centroids)


def cluster_request(state: RunState, header: Header) -> ClusterRequest:
    """The threshold and the centroids of this exchange."""
    decision = given(state.decision, "decision")
    return ClusterRequest(
        header=header,
        threshold=decision.value,
        per_site=dict(decision.per_site),
        centroids=given(state.clusters, "clusters").centroids,
    )


def quota_request(state: RunState, header: Header) -> QuotaRequest:
    """The threshold, and the sums from which each site derives what it keeps of each cluster."""
    decision, held = given(state.decision, "decision"), given(state.clusters, "clusters")
    return QuotaRequest(
        header=header,
        threshold=decision.value,
        per_site=dict(decision.per_site),
        totals=held.totals,
        extra=loss_clusters.extras(held.quotas, held.counts),
    )


def cluster(
    state: RunState, config: RunConfig, replies: Mapping[str, Reply], record: RoundRecord
) -> tuple[RunState, RoundRecord]:
    """Move the centroids to the means over all sites; after the last exchange, set the quotas.

    That one leaves them where they are: its counts are of the clusters that they made.
    """
    held = given(state.clusters, "clusters")
    said = {site: r for site, r in sorted(replies.items()) if isinstance(r, ClusterReply)}
    counts = {site: reply.counts for site, reply in said.items()}
    totals = np.array([sum(column) for column in zip(*counts.values(), strict=True)])
    if state.round < config.clusters.iterations:
        sums = np.sum([reply.sums for reply in said.values()], axis=0)
        centroids = loss_clusters.update(held.centroids, totals, sums)
        moved = float(np.abs(centroids - held.centroids).max())
        logger.info("clusters: exchange %d moves a centroid by up to %.3g", state.round, moved)
        return replace(state, clusters=replace(held, centroids=centroids)), record
    numbers = totals.tolist()
    quotas = loss_clusters.fill(numbers, loss_clusters.budget_of(numbers, config.clusters.budget))
    logger.info("clusters: %d of %d samples are to be kept", sum(quotas), sum(numbers))
    held = replace(held, counts=counts, totals=tuple(numbers), quotas=quotas)
    return replace(state, clusters=held), record
