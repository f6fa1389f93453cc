"""Answers that need no model: score from the tables, cluster, select by the threshold, close."""

import numpy as np

from fedwinnow.client.measuring.token_cache import forget_tokens
from fedwinnow.client.phases import cluster
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.site_run import Work
from fedwinnow.curation.datatypes import Fitted, PublicRows, Scores, Selection, Trajectory
from fedwinnow.curation.errors import DataError, ProtocolError, RefusalError
from fedwinnow.curation.protocol.agreement import disagreement
from fedwinnow.curation.protocol.messages import (
    CloseRequest,
    ClusterRequest,
    KeptReply,
    QuotaRequest,
    Receipt,
    Reply,
    ScoreRequest,
    SelectRequest,
    SummaryReply,
)
from fedwinnow.curation.scores.histogram import edges_from_public, on_grid, summarise
from fedwinnow.curation.scores.selection import keep_all, oracle, random_like, select
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.strategies.interfaces.merging import QueueingScorer
from fedwinnow.strategies.maths.blockwise_scoring import score_in_blocks
from fedwinnow.strategies.run_plugins import scorers

QUEUE = "queue.parquet"
"""File of a run's folder: on which samples a person is asked; only where the scorer asks."""


def score(work: Work, request: ScoreRequest) -> Reply:
    """Fit on the agreed public rows, score the silo, send a histogram."""
    _check_rows(work, request)
    public = PublicRows(trajectory=request.tables, kinds=request.kinds, parents=request.parents)
    private: Trajectory = tuple(
        tables.read_signals(work.folder / f"signals-{table.checkpoint}.parquet")
        for table in request.tables
    )
    everything: dict[str, Scores] = {}
    deciding: Fitted | None = None
    queue = None
    for name, scorer in scorers(work.terms.scorer).items():
        fitted = scorer.fit(public)
        everything[name] = score_in_blocks(scorer, private, fitted)
        if deciding is None and isinstance(scorer, QueueingScorer):
            queue = scorer.queue(private, fitted)
        deciding = deciding or fitted
    if deciding is None:  # pragma: no cover - there is always a deciding scorer
        message = "no scorer is configured"
        raise ProtocolError(message)
    mine = everything[work.terms.scorer.name]
    edges = _edges(work, deciding.public_scores)
    tables.write_scores(work.folder / "scores.parquet", private[-1], everything, edges)
    if queue is not None:
        tables.write_queue(work.folder / QUEUE, private[-1].ids, queue)
    if work.terms.clusters.count:
        cluster.prepare(work, request.tables, private)
    smallest = max(work.terms.summary.smallest_cell, work.config.site.smallest_cell)
    return SummaryReply(
        header=request.header,
        site=work.site,
        summary=summarise(mine, edges, smallest_cell=smallest),
        public_scores=deciding.public_scores,
        forecast=dict(deciding.forecast),
        unscored=work.rounded(int(np.isnan(mine).sum())),
    )


def _check_rows(work: Work, request: ScoreRequest) -> None:
    """Hold the agreed public rows to the site's own: a scorer is fitted on nothing else.

    Raises:
        RefusalError: they are other rows, or too far from the site's.
    """
    rows = work.pool.rows
    place = {sample.id: index for index, sample in enumerate(rows.samples)}
    for agreed in request.tables:
        mine = tables.read_signals(work.folder / f"public-{agreed.checkpoint}.parquet")
        at = [place[name] for name in mine.ids]
        said = agreed.ids, request.kinds, request.parents, agreed.references, agreed.learning_rate
        expected = (
            mine.ids,
            tuple(rows.kinds[index] for index in at),
            tuple(rows.parents[index] for index in at),
            mine.references,
            mine.learning_rate,
        )
        if said != expected or agreed.columns.keys() != mine.columns.keys():
            why = "they are not the rows that this site measured"
        else:
            why = disagreement(mine, agreed.columns, agreed.reference_gram)
        if why:
            message = f"public rows of checkpoint {agreed.checkpoint}: {why}; ask who sent them"
            raise RefusalError(message, clause="public_rows")


def cluster(work: Work, request: ClusterRequest) -> Reply:
    """Tell which clusters the samples that pass the threshold belong to, in counts and sums."""
    passing, _, _ = _passing(work, request)
    return cluster.exchange(work, request, passing)


def select_samples(work: Work, request: SelectRequest | QuotaRequest) -> Reply:
    """Apply the threshold, and write down why each sample was dropped."""
    curated, status, scores = _passing(work, request)
    if isinstance(request, QuotaRequest):
        curated = cluster.within_quotas(work, request, curated, scores)
    chosen: dict[str, Selection] = {}
    for arm in work.terms.study.arms:
        chosen[arm] = _arm(work, arm, curated, curated.ids, status)
    tables.write_selection(work.folder / "selection.parquet", chosen)
    kept = {arm: work.rounded(selection.count) for arm, selection in chosen.items()}
    return KeptReply(header=request.header, site=work.site, kept=kept)


def _passing(
    work: Work, request: ClusterRequest | SelectRequest | QuotaRequest
) -> tuple[Selection, np.ndarray, Scores]:
    """What passes a request's threshold, the status of each sample, and its score.

    Raises:
        RefusalError: the threshold is none that the histogram could lead to.
    """
    threshold = request.per_site.get(work.site, request.threshold)
    file = work.folder / "scores.parquet"
    ids, status, scores = tables.read_scores(file, work.terms.scorer.name)
    if not on_grid(threshold, tables.read_edges(file)):
        message = (
            f"threshold {threshold!r} is not on the grid of the histogram's edges; a threshold "
            "must come from the summaries"
        )
        raise RefusalError(message)
    queue = work.folder / QUEUE
    queued = tables.read_queue(queue) if queue.exists() else None
    return select(ids, scores, status, threshold, queued=queued), status, scores


def _arm(
    work: Work, arm: str, curated: Selection, ids: tuple[str, ...], status: np.ndarray
) -> Selection:
    if arm == "curated":
        return curated
    if not work.config.simulation:
        message = f"study arm {arm!r} is answered in simulations only; this site is not one"
        raise RefusalError(message)
    if arm == "keep_all":
        return keep_all(ids, status)
    if arm == "random":
        seed = derive_seed(work.terms.run.seed, work.site, "random arm")
        return random_like(curated, status, seed=seed)
    label = work.terms.study.truth
    truth = [sample.labels.get(label, "") for sample in work.pool.samples]
    if not all(truth):
        message = (
            f"study.truth = {label!r}: a sample of site {work.site} has no such label; name it in "
            "sites.columns.labels"
        )
        raise DataError(message)
    return oracle(ids, truth, status)


def close(work: Work, request: CloseRequest) -> Reply:
    """Acknowledge the end; the samples' tokens go."""
    forget_tokens(work.folder)
    return Receipt(header=request.header, site=work.site)


def _edges(work: Work, public_scores: Scores) -> np.ndarray:
    unit = scorers(work.terms.scorer)[work.terms.scorer.name].unit
    return edges_from_public(
        public_scores, bins=work.terms.summary.bins, probability=unit == "probability"
    )
