"""Answer a score request: fit on the public rows, score the silo, send a histogram."""

import numpy as np

from fedwinnow.client.phases import cluster
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.client.runs.told_text import tell
from fedwinnow.curation.datatypes import Fitted, PublicRows, Scores, Trajectory
from fedwinnow.curation.errors import ProtocolError, RefusalError
from fedwinnow.curation.protocol.agreement import why_disagreeing
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.protocol.replies import SummaryReply
from fedwinnow.curation.protocol.requests import ScoreRequest
from fedwinnow.curation.scores.histogram import summarise
from fedwinnow.curation.scores.histogram_edges import edges_from_public
from fedwinnow.strategies.interfaces.scorer import QueueingScorer
from fedwinnow.strategies.maths.blockwise_scoring import score_in_blocks


def score(run: SiteRun, request: ScoreRequest) -> Reply:
    """Fit on the agreed public rows, score the silo, send a histogram."""
    _check_rows(run, request)
    public = PublicRows(trajectory=request.tables, kinds=request.kinds, parents=request.parents)
    private: Trajectory = tuple(
        tables.read_signals(run.files.signals(table.checkpoint)) for table in request.tables
    )
    everything: dict[str, Scores] = {}
    deciding: Fitted | None = None
    queue = None
    for name, scorer in run.plugins.scorers.items():
        fitted = scorer.fit(public)
        found = score_in_blocks(scorer, private, fitted)
        if not run.config.simulation:  # an infinity is no score, and no error that tells of it
            found = np.where(np.isfinite(found), found, np.nan)
        everything[name] = found
        if deciding is None and isinstance(scorer, QueueingScorer):
            queue = scorer.queue(private, fitted)
        deciding = deciding or fitted
    if deciding is None:  # pragma: no cover - there is always a deciding scorer
        message = "no scorer is configured"
        raise ProtocolError(message)
    mine = everything[run.terms.scorer.name]
    edges = _edges(run, deciding.public_scores)
    tables.write_scores(run.files.scores, private[-1], everything, edges)
    if queue is not None:
        tables.write_queue(run.files.queue, private[-1].ids, queue)
    if run.terms.clusters.count:
        cluster.write_trajectories(run, request.tables, private)
    site = run.config.site
    return SummaryReply(
        header=request.header,
        site=run.site,
        summary=summarise(
            mine,
            edges,
            smallest_cell=max(run.terms.summary.smallest_cell, site.smallest_cell),
            step=site.round_counts_to,
            samples=run.rounded_group(len(run.data.samples)),
            most_groups=site.max_bins,
            public_scores=deciding.public_scores,
        ),
        public_scores=deciding.public_scores,
        forecast=dict(deciding.forecast),
        unscored=run.rounded(int(np.isnan(mine).sum())),
    )


def _check_rows(run: SiteRun, request: ScoreRequest) -> None:
    """Check the agreed public rows against the site's own, before a scorer is fitted on them.

    Raises:
        RefusalError: the rows differ, or are too far from the site's.
    """
    rows = run.data.rows
    place = {sample.id: index for index, sample in enumerate(rows.samples)}
    for agreed in request.tables:
        mine = tables.read_signals(run.files.public(agreed.checkpoint))
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
            why = why_disagreeing(mine, agreed.columns, agreed.reference_gram)
        if why:
            message = f"public rows of checkpoint {agreed.checkpoint}: {why}; ask who sent them"
            told = tell("the public rows are not those that this site measured; ask who sent them")
            raise RefusalError(message, clause="public_rows", told=told)


def _edges(run: SiteRun, public_scores: Scores) -> np.ndarray:
    unit = run.plugins.scorer.unit
    return edges_from_public(
        public_scores, bins=run.terms.summary.bins, probability=unit == "probability"
    )
