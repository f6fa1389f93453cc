"""Warm up and train: merge the sites' adapters at once, or after the members judged them."""

import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedwinnow.curation.adapters.checks import check_compatible
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.protocol.replies import TrainedAdapter
from fedwinnow.curation.protocol.requests import TrainRequest
from fedwinnow.server.aggregation.count_guards import bound_reported_counts
from fedwinnow.server.aggregation.round_merge import RoundEvidence, merge_round
from fedwinnow.server.aggregation.update_alignment import gradient_sites, update_alignments
from fedwinnow.server.phases.limits import (
    MOST_RATE,
    why_no_count,
    why_no_losses,
    why_no_update,
)
from fedwinnow.server.phases.quorum import needs_reviewers
from fedwinnow.server.phases.values import (
    Outcome,
    Replies,
    ReplyContext,
    ServerPhase,
    replies_of,
    request_adapter,
    why_too_many,
)
from fedwinnow.server.state import Checkpoint, RoundRecord, RunState, SiteRound, required
from fedwinnow.strategies.run_plugins import MergePlugins

logger = logging.getLogger(__name__)


def request(state: RunState, config: RunConfig, header: Header) -> TrainRequest:
    """Send the adapter to train from, and the place of the round in the learning-rate plan."""
    warm_up = header.phase == Phase.WARM_UP
    section = config.warm_up if warm_up else config.training
    plugins = MergePlugins.of(config)
    return TrainRequest(
        header=header,
        adapter=required(request_adapter(state), "adapter"),
        step_offset=(state.round - 1) * section.steps,
        total_steps=section.rounds * section.steps,
        sites=state.sites,
        frozen="" if warm_up else plugins.frozen_factor(state.round),
        change=state.change,
        gradients_from=() if warm_up else gradient_sites(plugins, state.sites),
    )


def absorb(state: RunState, config: RunConfig, replies: Replies, record: RoundRecord) -> Outcome:
    """Weigh and merge the adapters, or hold them for the judges.

    A site that kept nothing has weight 0 and no adapter.
    """
    trained = replies_of(replies, TrainedAdapter)
    adapters = {site: r.adapter for site, r in trained.items() if r.adapter is not None}
    warm_up = state.phase == Phase.WARM_UP.value
    gradients = {site: r.gradient for site, r in trained.items() if r.gradient is not None}
    toward = update_alignments(adapters, gradients, required(state.adapter, "adapter"))
    sites = {
        site: SiteRound(
            samples=reply.samples,
            weight=0.0,
            losses=reply.losses,
            alignment=toward.get(site, 0.0),
        )
        for site, reply in trained.items()
    }
    rates = [reply.learning_rate for site, reply in trained.items() if site in adapters]
    state = replace(state, learning_rate=float(np.mean(rates)) if rates else 0.0)
    record = replace(record, sites=sites)
    if config.guards.anchor_margin > 0 and not warm_up and len(adapters) > 0:
        return replace(state, pending=adapters), record
    state, record = merge_into_state(state, config, adapters, record, {})
    if warm_up:
        merged = required(state.adapter, "adapter")
        checkpoint = Checkpoint(adapter=merged, learning_rate=state.learning_rate)
        state = replace(state, checkpoints=(*state.checkpoints, checkpoint))
        last = state.round == config.warm_up.rounds
        if last and needs_reviewers(adapters, config, record.missing):
            state = replace(state, reviewers=adapters)
    return state, record


def merge_into_state(
    state: RunState,
    config: RunConfig,
    adapters: Mapping[str, Adapter],
    record: RoundRecord,
    left_out: Mapping[str, str],
) -> tuple[RunState, RoundRecord]:
    """Return the state with the merged adapter, and the record with weights and report."""
    warm_up = record.phase == Phase.WARM_UP.value
    counts: Mapping[str, int] = {site: record.sites[site].samples for site in adapters}
    cut: Mapping[str, str] = {}
    if not warm_up:
        counts, cut = bound_reported_counts(counts, state.members, config.guards)
    merged = merge_round(
        adapters,
        counts,
        required(state.adapter, "adapter"),
        state.change,
        config,
        warm_up=warm_up,
        seen=RoundEvidence(
            left_out=left_out,
            alignments={site: record.sites[site].alignment for site in adapters},
            effects={site: record.sites[site].effects for site in adapters},
            before=_weights_before(state, record),
        ),
        memory=state.memory if record.round > 1 else {},
    )
    bounded = {
        site: "; ".join(filter(None, (merged.bounded.get(site), cut.get(site))))
        for site in record.sites
    }
    sites = {
        site: replace(
            one,
            weight=merged.weights.get(site, 0.0),
            judged=site in left_out,
            bounded=bounded[site],
        )
        for site, one in record.sites.items()
    }
    logger.info(
        "%s round %d merged %d adapters", record.arm or record.phase, record.round, len(adapters)
    )
    state = replace(state, adapter=merged.adapter, change=merged.change, memory=merged.memory)
    return state, replace(record, sites=sites, merge=dict(merged.report))


def _weights_before(state: RunState, record: RoundRecord) -> dict[str, float]:
    """Return site → its weight in the arm's previous round; empty in the first."""
    for one in reversed(state.records):
        if (one.phase, one.arm, one.round) == (record.phase, record.arm, record.round - 1):
            return {site: part.weight for site, part in one.sites.items()}
    return {}


def why_unusable(reply: TrainedAdapter, at: ReplyContext) -> str:  # noqa: PLR0911 - one return a check
    """Check count, losses and the shape and rank of the factors."""
    state, config = at.state, at.config
    if why := why_no_count(reply.samples, "samples"):
        return why
    if (reply.adapter is None) != (reply.samples == 0):
        what = "no adapter" if reply.adapter is None else "an adapter"
        return f"sent {what} for {reply.samples} samples"
    if why := why_no_losses(reply.losses, "training losses"):
        return f"{why}; lower training.learning_rate"
    if not 0 <= reply.learning_rate <= MOST_RATE:
        return f"its learning rate is none; expected 0 to {MOST_RATE:g}"
    warm_up = state.phase == Phase.WARM_UP.value
    steps = (config.warm_up if warm_up else config.training).steps
    if len(reply.losses) > steps:
        return f"it sent {len(reply.losses)} losses for a round of {steps} steps"
    if not warm_up and (why := why_too_many(reply.samples, at.samples)):
        return why
    return _factors(reply.site, reply, required(state.adapter, "adapter"))


def _factors(site: str, reply: TrainedAdapter, sent: Adapter) -> str:
    """Check that adapter and gradient fit the matrices that were sent, at no higher rank."""
    ranks = {name: len(a) for name, a in sent.a.items()}
    if reply.gradient is not None:
        check_compatible({site: reply.gradient}, sent)
        other = [name for name, a in reply.gradient.a.items() if len(a) != ranks[name]]
        if other:
            return f"its gradient has another rank than was sent in {other[0]}"
        if why := why_no_update(reply.gradient, "gradient"):
            return why
    if reply.adapter is None:
        return ""
    check_compatible({site: reply.adapter}, sent)
    higher = [name for name, a in reply.adapter.a.items() if len(a) > ranks[name]]
    if higher:
        return f"its rank in {higher[0]} is above the {ranks[higher[0]]} that was sent"
    return why_no_update(reply.adapter, "adapter")


PHASE = ServerPhase(request=request, why_unusable=why_unusable, absorb=absorb)
