"""Answer cluster requests: assign loss trajectories, send counts and sums, apply quotas.

Scoring stores the standardised losses on disk, and each exchange the cluster of each sample
(``client/runs/run_files.py``). The selection takes the last exchange as it stands, so that quotas
are shares of the very counts that were sent.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from fedwinnow.client.phases.apply_threshold import apply_threshold
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.client.runs.told_text import tell
from fedwinnow.curation.datatypes import Scores, Selection, Trajectory
from fedwinnow.curation.errors import ProtocolError, RefusalError
from fedwinnow.curation.protocol.replies import ClusterReply
from fedwinnow.curation.protocol.requests import ClusterRequest, QuotaRequest
from fedwinnow.curation.scores import loss_clusters
from fedwinnow.curation.seeds import derive_seed

START_TOLERANCE = 1e-6
"""Largest difference between the initial centroids that a site computes and those it is sent."""


def write_trajectories(run: SiteRun, public: Trajectory, private: Trajectory) -> None:
    """Store losses standardised by the public rows, and the initial centroids that follow."""
    known = loss_clusters.loss_trajectories(public)
    points = loss_clusters.standardise_losses(loss_clusters.loss_trajectories(private), known)
    seed = derive_seed(run.terms.run.seed, "clusters")
    start = loss_clusters.initial_centroids(
        loss_clusters.standardise_losses(known, known), run.terms.clusters.count, seed
    )
    tables.write_trajectories(run.files.trajectories, private[-1].ids, points, start)


def cluster(run: SiteRun, request: ClusterRequest) -> ClusterReply:
    """Assign the samples that pass the threshold to clusters, and send counts and sums.

    Counts and sums cover groups that are large enough, and nothing else.

    Raises:
        RefusalError: the request is not this run's next step: another start, threshold or shape.
    """
    passing, _, _ = apply_threshold(run, request)
    points, start = tables.read_trajectories(run.files.trajectories)
    _check(run, request, start)
    rows = np.flatnonzero(np.array(passing.kept, dtype=bool) & np.isfinite(points).all(axis=1))
    own = run.files.clusters(request.header.round)
    if not own.exists():
        others = [file for file in run.files.all_clusters() if file != own]
        earlier = [tables.read_clusters(file)[0][rows] for file in others]
        places = np.full(len(points), -1, dtype=np.int64)
        places[rows] = loss_clusters.assign_in_groups(
            points[rows], request.centroids, earlier, smallest=smallest_group(run)
        )
        tables.write_clusters(own, passing.ids, places, _words(run, request))
    places, _ = tables.read_clusters(own)
    counts, sums = loss_clusters.cluster_sums(points[rows], places[rows], len(start))
    if len(rows) < smallest_group(run):
        counts, sums = np.zeros_like(counts), np.zeros_like(sums)
    told, means = loss_clusters.round_down(counts, sums, run.config.site.round_counts_to)
    return ClusterReply(
        header=request.header, site=run.site, counts=tuple(told.tolist()), sums=means
    )


def apply_quotas(
    run: SiteRun, request: QuotaRequest, passing: Selection, scores: Scores
) -> Selection:
    """Keep the best of each cluster, up to this site's share of the quota in the terms.

    Raises:
        ProtocolError: the last exchange is missing here, or the totals do not fit its clusters.
        RefusalError: the threshold is not that of the exchanges.
    """
    section, site = run.terms.clusters, run.site
    file = run.files.clusters(section.iterations)
    if not file.exists():
        message = f"exchange {section.iterations} of clusters has not run at this site"
        told = tell("the last exchange of clusters has not run at this site")
        raise ProtocolError(message, clause="protocol", told=told)
    places, words = tables.read_clusters(file)
    number = len(words["centroids"])
    extra = request.extra.get(site, ())
    fits = len(request.totals) == number and all(0 <= k < number for k in extra)
    if not fits or min(request.totals, default=0) < 0:
        message = f"totals of {len(request.totals)} clusters came, this site knows {number}"
        told = tell("the totals do not fit the clusters of the exchanges")
        raise ProtocolError(message, clause="clusters", told=told)
    _same_threshold(words["threshold"], request.per_site.get(site, request.threshold))
    held = np.bincount(places[places >= 0], minlength=number)
    step = run.config.site.round_counts_to
    shown = held if held.sum() < smallest_group(run) else held // step * step
    quotas = loss_clusters.site_quotas(
        shown.tolist(),
        request.totals,
        loss_clusters.fill_quotas(
            request.totals, loss_clusters.samples_to_keep(request.totals, section.budget)
        ),
        extra,
    )
    kept = loss_clusters.select_best(scores, passing.ids, places, quotas)
    reasons = [
        reason or _reason(int(place), keep=bool(keep))
        for reason, place, keep in zip(passing.reasons, places, kept, strict=True)
    ]
    return replace(passing, kept=tuple(kept.tolist()), reasons=tuple(reasons))


def smallest_group(run: SiteRun) -> int:
    """Return the fewest samples of a group whose sum may leave.

    A mean of losses needs as many samples as a cell of the histogram, and at least the step of
    rounding, so that no group is rounded down to nothing.
    """
    site = run.config.site
    least = max(1, run.terms.summary.smallest_cell, site.smallest_cell, site.round_counts_to)
    return least if run.config.simulation else max(least, run.config.policy.smallest_group)


def _reason(place: int, *, keep: bool) -> str:
    if keep:
        return ""
    return "no whole loss trajectory" if place < 0 else f"over the quota of cluster {place}"


def _check(run: SiteRun, request: ClusterRequest, start: np.ndarray) -> None:
    """Check a request against the start that public rows give, and against earlier requests."""
    if request.centroids.shape != start.shape:
        message = f"centroids have shape {request.centroids.shape}, this run's {start.shape}"
        told = tell("the centroids are not of this run's shape")
        raise RefusalError(message, clause="clusters", told=told)
    first = request.header.round == 1
    if first and not np.allclose(request.centroids, start, rtol=0, atol=START_TOLERANCE):
        message = "centroids of round 1 are not those that follow from the agreed public rows"
        told = tell("centroids of round 1 are not those that follow from the agreed public rows")
        raise RefusalError(message, clause="clusters", told=told)
    for file in run.files.all_clusters():
        _, words = tables.read_clusters(file)
        _same_threshold(words["threshold"], _words(run, request)["threshold"])
        if file == run.files.clusters(request.header.round) and words != _words(run, request):
            message = f"round {request.header.round} was asked before with other centroids"
            told = tell("this round was asked before with other centroids")
            raise RefusalError(message, clause="clusters", told=told)


def _same_threshold(known: float, came: float) -> None:
    if known != came:
        message = f"threshold {came!r} came, the clusters of this run were told for {known!r}"
        told = tell("the threshold is not that of this run's earlier exchanges")
        raise RefusalError(message, clause="clusters", told=told)


def _words(run: SiteRun, request: ClusterRequest) -> dict[str, Any]:
    """Return the threshold and centroids of an exchange's request."""
    threshold = request.per_site.get(run.site, request.threshold)
    return {"threshold": threshold, "centroids": request.centroids.tolist()}
