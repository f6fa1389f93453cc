"""Evaluate: median losses of public anchors, and sums over the sites' own hold-outs."""

from dataclasses import replace

import numpy as np

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.replies import MetricsReply
from fedwinnow.curation.protocol.requests import EvaluateRequest
from fedwinnow.server.phases.limits import (
    MOST_LOSS,
    clean_text,
    why_no_count,
    why_no_losses,
)
from fedwinnow.server.phases.quorum import majority, require_quorum
from fedwinnow.server.phases.values import (
    Outcome,
    Replies,
    ReplyContext,
    ServerPhase,
    replies_of,
    request_adapter,
)
from fedwinnow.server.state import RoundRecord, RunState, required


def request(state: RunState, config: RunConfig, header: Header) -> EvaluateRequest:
    """Send the adapter, base change included; generations only before and after training."""
    ends = state.round == 0 or (state.arm == "curated" and state.round == config.training.rounds)
    return EvaluateRequest(
        header=header,
        adapter=required(request_adapter(state), "adapter"),
        generate=config.evaluation.generate if ends else 0,
    )


def why_unusable(reply: MetricsReply, at: ReplyContext) -> str:
    """Check sums, losses and the number of answers."""
    own, losses = reply.own, reply.public_losses
    if why := why_no_count(own.samples, "own hold-out samples"):
        return why
    if not 0 <= own.loss_sum <= MOST_LOSS * own.samples:
        return f"its own hold-out's loss is none of {own.samples} samples"
    if why := why_no_losses(losses.tolist(), "public losses"):
        return why
    shown = {len(reply.prompts), len(reply.references), len(reply.generations)}
    if len(shown) != 1 or max(shown) > at.config.evaluation.generate:
        return f"its answers to public prompts do not belong together: {sorted(shown)} of them"
    return ""


def absorb(state: RunState, config: RunConfig, replies: Replies, record: RoundRecord) -> Outcome:
    """Record median public losses and the sums over the sites' own hold-outs."""
    said, missing = replies_of(replies, MetricsReply), dict(record.missing)
    anchors = majority({site: len(reply.public_losses) for site, reply in said.items()})
    missing |= {
        site: f"it evaluates {len(reply.public_losses)} public anchors, the others {anchors}"
        for site, reply in said.items()
        if len(reply.public_losses) != anchors
    }
    said = {site: reply for site, reply in said.items() if site not in missing}
    require_quorum(said, config, record.phase, missing)
    losses = np.median(np.stack([said[site].public_losses for site in said]), axis=0)
    prompts, references, generations = majority(
        {site: (one.prompts, one.references, one.generations) for site, one in said.items()}
    )
    record = replace(
        record,
        public_losses=tuple(float(value) for value in losses),
        own_loss_sum=float(sum(said[site].own.loss_sum for site in sorted(said))),
        own_samples=sum(reply.own.samples for reply in said.values()),
        prompts=tuple(map(clean_text, prompts)),
        references=tuple(map(clean_text, references)),
        generations=tuple(map(clean_text, generations)),
        missing=missing,
    )
    return state, record


PHASE = ServerPhase(request=request, why_unusable=why_unusable, absorb=absorb)
