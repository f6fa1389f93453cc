"""Cluster: k-means over loss trajectories from the sites' sums, then quotas.

The maths is that of ``curation/scores/loss_clusters.py``.
"""

import logging
from dataclasses import replace

import numpy as np

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.replies import ClusterReply
from fedwinnow.curation.protocol.requests import ClusterRequest, QuotaRequest
from fedwinnow.curation.scores import loss_clusters
from fedwinnow.curation.scores.loss_clusters import BOUND
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.server.phases.limits import why_no_count
from fedwinnow.server.phases.values import (
    Outcome,
    Replies,
    ReplyContext,
    ServerPhase,
    is_finite,
    replies_of,
    why_too_many,
)
from fedwinnow.server.state import Clusters, RoundRecord, RunState, required

logger = logging.getLogger(__name__)


def start_clusters(state: RunState, config: RunConfig) -> Clusters:
    """Return the initial centroids, a function of the agreed public rows and the seed."""
    rows = loss_clusters.loss_trajectories(state.tables)
    seed = derive_seed(config.run.seed, "clusters")
    centroids = loss_clusters.initial_centroids(
        loss_clusters.standardise_losses(rows, rows), config.clusters.count, seed
    )
    if len(centroids) < config.clusters.count:
        words = "clusters.count is %d, but only %d public rows differ in their losses"
        logger.warning(words, config.clusters.count, len(centroids))
    return Clusters(centroids=centroids)


def request(state: RunState, config: RunConfig, header: Header) -> ClusterRequest:  # noqa: ARG001 - every phase has the same form
    """Send the threshold and the centroids of this exchange."""
    decision = required(state.decision, "decision")
    return ClusterRequest(
        header=header,
        threshold=decision.value,
        per_site=dict(decision.per_site),
        centroids=required(state.clusters, "clusters").centroids,
    )


def quota_request(state: RunState, header: Header) -> QuotaRequest:
    """Send the threshold, and the sums from which each site derives its share of each quota."""
    decision, held = required(state.decision, "decision"), required(state.clusters, "clusters")
    return QuotaRequest(
        header=header,
        threshold=decision.value,
        per_site=dict(decision.per_site),
        totals=held.totals,
        extra=loss_clusters.extra_by_site(held.quotas, held.counts),
    )


def absorb(state: RunState, config: RunConfig, replies: Replies, record: RoundRecord) -> Outcome:
    """Move the centroids to the means over all sites; after the last exchange, set the quotas.

    The last exchange leaves the centroids in place, as its counts are of the clusters they define.
    """
    held = required(state.clusters, "clusters")
    said = replies_of(replies, ClusterReply)
    counts = {site: reply.counts for site, reply in said.items()}
    totals = np.array([sum(column) for column in zip(*counts.values(), strict=True)])
    if state.round < config.clusters.iterations:
        sums = np.sum([reply.sums for reply in said.values()], axis=0)
        centroids = loss_clusters.update_centroids(held.centroids, totals, sums)
        moved = float(np.abs(centroids - held.centroids).max())
        logger.info("clusters: exchange %d moves a centroid by up to %.3g", state.round, moved)
        return replace(state, clusters=replace(held, centroids=centroids)), record
    numbers = totals.tolist()
    quotas = loss_clusters.fill_quotas(
        numbers, loss_clusters.samples_to_keep(numbers, config.clusters.budget)
    )
    logger.info("clusters: %d of %d samples are to be kept", sum(quotas), sum(numbers))
    held = replace(held, counts=counts, totals=tuple(numbers), quotas=quotas)
    return replace(state, clusters=held), record


def why_unusable(reply: ClusterReply, at: ReplyContext) -> str:
    """Check cluster counts and sums: shape, sign, clipping bound."""
    counts, sums = reply.counts, reply.sums
    shape = required(at.state.clusters, "clusters").centroids.shape
    if (len(counts), *sums.shape[1:]) != shape or len(sums) != len(counts):
        return f"it tells {len(counts)} counts and sums of shape {sums.shape}, not of {shape}"
    if why := next(filter(None, (why_no_count(n, "a cluster") for n in counts)), ""):
        return why
    if not is_finite(sums):
        return "a sum of its clusters is a NaN or an infinity"
    if why := why_too_many(sum(counts), at.samples):
        return why
    most = np.array(counts, dtype=np.float64)[:, None] * BOUND * (1 + 1e-9)
    if bool((np.abs(sums) > most).any()):
        return f"a sum of its clusters is beyond {BOUND:g} spreads times their count"
    return ""


PHASE = ServerPhase(request=request, why_unusable=why_unusable, absorb=absorb)
