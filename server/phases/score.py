"""Score: merge the sites' histograms, and set the threshold."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median_low

import numpy as np

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.datatypes import PublicScores
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.replies import SummaryReply
from fedwinnow.curation.protocol.requests import ScoreRequest
from fedwinnow.server.aggregation.count_guards import guard_summaries
from fedwinnow.server.phases.limits import hold_to_count, why_no_names, why_too_full
from fedwinnow.server.phases.quorum import majority, require_quorum
from fedwinnow.server.phases.values import (
    Outcome,
    Replies,
    ReplyContext,
    ServerPhase,
    all_finite,
    is_finite,
    replies_of,
)
from fedwinnow.server.state import RoundRecord, RunState
from fedwinnow.strategies.interfaces.threshold import Threshold
from fedwinnow.strategies.registry import build

logger = logging.getLogger(__name__)

SCORE_TOLERANCE = 1e-6
"""Largest difference between the sites' scores of the public rows (design, section 4)."""


def request(state: RunState, config: RunConfig, header: Header) -> ScoreRequest:  # noqa: ARG001 - every phase has the same form
    """Send the agreed public rows, on which every site fits its scorers."""
    return ScoreRequest(
        header=header, tables=state.tables, kinds=state.kinds, parents=state.parents
    )


def why_unusable(reply: SummaryReply, at: ReplyContext) -> str:
    """Check cells, edges, forecast, the scores of the public rows, and the histogram's total."""
    edges, counts = reply.summary.edges, reply.summary.counts
    if len(counts) != len(edges) + 1 or len(edges) == 0 or not bool((np.diff(edges) > 0).all()):
        return f"its histogram has {len(counts)} cells on {len(edges)} edges"
    numbers = (*reply.forecast.values(), reply.summary.largest_merged)
    if not bool((counts >= 0).all()) or reply.unscored < 0 or not all_finite(numbers):
        return "its histogram holds a count below 0, or its forecast is no number"
    if not (is_finite(counts) and is_finite(edges) and is_finite(reply.public_scores)):
        return "a cell, an edge or a public score is a NaN or an infinity"
    if why := why_no_names(reply.forecast, "forecast"):
        return why
    return why_too_full(reply.summary, reply.unscored, at.samples)


def absorb(state: RunState, config: RunConfig, replies: Replies, record: RoundRecord) -> Outcome:
    """Merge the score summaries and set the threshold."""
    said, missing = replies_of(replies, SummaryReply), dict(record.missing)
    rows = len(state.kinds)
    missing |= {
        site: f"it scores {len(reply.public_scores)} public rows, not {rows}"
        for site, reply in said.items()
        if len(reply.public_scores) != rows
    }
    edges = majority({site: reply.summary.edges.tobytes() for site, reply in said.items()})
    missing |= {
        site: "its histogram lies on other edges than the others'"
        for site, reply in said.items()
        if reply.summary.edges.tobytes() != edges
    }
    said = {site: reply for site, reply in said.items() if site not in missing}
    require_quorum(said, config, record.phase, missing)
    middle = np.median(np.stack([said[site].public_scores for site in said]), axis=0)
    for site, reply in sorted(said.items()):
        apart = float(np.abs(reply.public_scores - middle).max(initial=0.0))
        if apart > SCORE_TOLERANCE * max(1.0, float(np.abs(middle).max(initial=0.0))):
            missing[site] = f"its scores of the public rows differ from the median by {apart:.2g}"
    said = {site: reply for site, reply in said.items() if site not in missing}
    require_quorum(said, config, record.phase, missing)
    joined = state.joined
    summaries = {site: hold_to_count(said[site].summary, joined[site]) for site in sorted(said)}
    threshold: Threshold = build("threshold", config.threshold.name, config.threshold.settings)
    public = PublicScores(scores=middle, kinds=state.kinds, domains=state.domains)
    decision = threshold(guard_summaries(summaries, config.guards.summaries), public)
    if decision.per_site and config.guards.summaries == "auto":
        # a site's own threshold follows its own histogram: a liar would mislead itself alone
        decision = replace(decision, per_site=threshold(summaries, public).per_site)
    logger.info("threshold %s = %.6g", config.threshold.name, decision.value)
    state = replace(
        state,
        summaries=summaries,
        unscored={site: said[site].unscored for site in sorted(said)},
        public_scores=tuple(float(value) for value in middle),
        forecast=_forecast([said[site].forecast for site in sorted(said)]),
        decision=decision,
    )
    return state, replace(record, missing=missing)


def _forecast(said: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median forecast by name: it follows from public rows, so honest sites agree."""
    names = majority({str(place): tuple(sorted(one)) for place, one in enumerate(said)})
    told = [one for one in said if tuple(sorted(one)) == names]
    return {name: float(median_low(one[name] for one in told)) for name in names}


PHASE = ServerPhase(request=request, why_unusable=why_unusable, absorb=absorb)
