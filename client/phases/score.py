"""Answer a score request: fit on the public rows, score the silo, send a histogram."""

import numpy as np

from fedwinnow.client.phases import cluster
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.site_run import Work
from fedwinnow.curation.datatypes import Fitted, PublicRows, Scores, Trajectory
from fedwinnow.curation.errors import ProtocolError, RefusalError
from fedwinnow.curation.protocol.agreement import disagreement
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.protocol.replies import SummaryReply
from fedwinnow.curation.protocol.requests import ScoreRequest
from fedwinnow.curation.scores.histogram import summarise
from fedwinnow.curation.scores.histogram_edges import edges_from_public
from fedwinnow.strategies.interfaces.scorer import QueueingScorer
from fedwinnow.strategies.maths.blockwise_scoring import score_in_blocks


def score(work: Work, request: ScoreRequest) -> Reply:
    """Fit on the agreed public rows, score the silo, send a histogram."""
    _check_rows(work, request)
    public = PublicRows(trajectory=request.tables, kinds=request.kinds, parents=request.parents)
    private: Trajectory = tuple(
        tables.read_signals(work.files.signals(table.checkpoint)) for table in request.tables
    )
    everything: dict[str, Scores] = {}
    deciding: Fitted | None = None
    queue = None
    for name, scorer in work.plugins.scorers.items():
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
    tables.write_scores(work.files.scores, private[-1], everything, edges)
    if queue is not None:
        tables.write_queue(work.files.queue, private[-1].ids, queue)
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
        mine = tables.read_signals(work.files.public(agreed.checkpoint))
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


def _edges(work: Work, public_scores: Scores) -> np.ndarray:
    unit = work.plugins.scorer.unit
    return edges_from_public(
        public_scores, bins=work.terms.summary.bins, probability=unit == "probability"
    )
