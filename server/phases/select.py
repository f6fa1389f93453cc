"""Select: send the threshold, or the quotas of clusters, and note what each site keeps."""

import logging
from dataclasses import replace

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.replies import KeptReply
from fedwinnow.curation.protocol.requests import QuotaRequest, SelectRequest
from fedwinnow.server.phases.cluster import quota_request
from fedwinnow.server.phases.limits import why_no_count
from fedwinnow.server.phases.values import (
    Outcome,
    Replies,
    ReplyContext,
    ServerPhase,
    replies_of,
    why_too_many,
)
from fedwinnow.server.state import RoundRecord, RunState, required

logger = logging.getLogger(__name__)


def request(state: RunState, config: RunConfig, header: Header) -> SelectRequest | QuotaRequest:  # noqa: ARG001 - every phase has the same form
    """Send the threshold; in a run with clusters also their quotas."""
    if state.clusters is not None:
        return quota_request(state, header)
    decision = required(state.decision, "decision")
    return SelectRequest(header=header, threshold=decision.value, per_site=dict(decision.per_site))


def why_unusable(reply: KeptReply, at: ReplyContext) -> str:
    """Check that there is a kept count of each arm, none above what the site joined with."""
    if set(reply.kept) != set(at.config.study.arms):
        return "expected a kept count of each arm of the run and no other"
    if why := next(
        filter(None, (why_no_count(n, "kept samples") for n in reply.kept.values())), ""
    ):
        return why
    return why_too_many(max(reply.kept.values()), at.samples)


def absorb(state: RunState, config: RunConfig, replies: Replies, record: RoundRecord) -> Outcome:
    """Record how many samples each site keeps."""
    said = replies_of(replies, KeptReply)
    kept: dict[str, dict[str, int]] = {
        str(arm): {site: said[site].kept.get(arm, 0) for site in sorted(said)}
        for arm in config.study.arms
    }
    logger.info("kept %d samples at %d sites", sum(kept["curated"].values()), len(said))
    return replace(state, kept=kept), record


PHASE = ServerPhase(request=request, why_unusable=why_unusable, absorb=absorb)
