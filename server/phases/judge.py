"""Judge: merge the adapters of a round to which the other members do not object."""

from dataclasses import replace

import numpy as np

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.replies import JudgedAdapters
from fedwinnow.curation.protocol.requests import JudgeRequest
from fedwinnow.server.aggregation.update_guards import effects_on_anchors, harmful_sites
from fedwinnow.server.phases.limits import why_no_losses
from fedwinnow.server.phases.quorum import majority, require_quorum
from fedwinnow.server.phases.train import merge_into_state
from fedwinnow.server.phases.values import (
    Outcome,
    Replies,
    ReplyContext,
    ServerPhase,
    replies_of,
    request_adapter,
)
from fedwinnow.server.state import RoundRecord, RunState, required


def request(state: RunState, config: RunConfig, header: Header) -> JudgeRequest:  # noqa: ARG001 - every phase has the same form
    """Send the members' adapters of the round."""
    return JudgeRequest(
        header=header,
        adapter=required(request_adapter(state), "adapter"),
        candidates=state.pending,
        change=state.change,
    )


def why_unusable(reply: JudgedAdapters, at: ReplyContext) -> str:
    """Check that each candidate but its own has one loss an anchor, none below 0."""
    expected, number = set(at.state.pending) - {at.site}, len(reply.before)
    if set(reply.losses) != expected:
        return f"it judges {sorted(reply.losses)}, not {sorted(expected)}"
    if len(reply.domains) != number:
        return f"it names {len(reply.domains)} domains for {number} anchors"
    for losses in (reply.before, *reply.losses.values()):
        if len(losses) != number or number == 0:
            return "a loss that it measured is missing"
        if why := why_no_losses(losses.tolist(), "judgements"):
            return why
    return ""


def absorb(state: RunState, config: RunConfig, replies: Replies, record: RoundRecord) -> Outcome:
    """Leave out harmful adapters, merge the others, and complete the training round's record."""
    said = replies_of(replies, JudgedAdapters)
    agreed = majority({site: reply.domains for site, reply in said.items()})
    missing = dict(record.missing) | {
        site: f"it judges on {len(reply.domains)} anchors of other domains than the others'"
        for site, reply in said.items()
        if reply.domains != agreed
    }
    said = {site: reply for site, reply in said.items() if site not in missing}
    require_quorum(said, config, record.phase, missing)
    before = np.median(np.stack([said[site].before for site in said]), axis=0)
    losses = {
        owner: {site: reply.losses[owner] for site, reply in said.items() if owner in reply.losses}
        for owner in sorted(state.pending)
    }
    out = harmful_sites(losses, before, margin=config.guards.anchor_margin)
    effects = effects_on_anchors(losses, before, agreed)
    *earlier, trained = state.records
    sites = {s: replace(one, effects=effects.get(s, {})) for s, one in trained.sites.items()}
    trained = replace(trained, sites=sites)
    state, trained = merge_into_state(state, config, state.pending, trained, out)
    record = replace(record, sites=trained.sites, merge=trained.merge, missing=missing)
    return replace(state, records=(*earlier, trained), pending={}), record


PHASE = ServerPhase(request=request, why_unusable=why_unusable, absorb=absorb)
