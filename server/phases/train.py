"""What a training round makes of its replies: merged at once, or after the others' judgement."""

import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.protocol.messages import JudgedAdapters, Reply, TrainedAdapter
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.server.aggregation.count_guards import guarded_counts
from fedwinnow.server.aggregation.round_merge import Seen, merge_round
from fedwinnow.server.aggregation.update_alignment import alignments
from fedwinnow.server.aggregation.update_guards import against_anchors, effects_on_anchors
from fedwinnow.server.phases.quorum import enough, majority
from fedwinnow.server.reviewers import enough_reviewers
from fedwinnow.server.state import Checkpoint, RoundRecord, RunState, SiteRound, given

logger = logging.getLogger(__name__)


def train(
    state: RunState, config: RunConfig, replies: Mapping[str, Reply], record: RoundRecord
) -> tuple[RunState, RoundRecord]:
    """Weigh and merge; a site that kept nothing has weight 0 and no adapter."""
    trained = {s: r for s, r in sorted(replies.items()) if isinstance(r, TrainedAdapter)}
    adapters = {site: r.adapter for site, r in trained.items() if r.adapter is not None}
    warm_up = state.phase == Phase.WARM_UP.value
    gradients = {site: r.gradient for site, r in trained.items() if r.gradient is not None}
    toward = alignments(adapters, gradients, given(state.adapter, "adapter"))
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
    state, record = _merged(state, config, adapters, record, {})
    if warm_up:
        merged = given(state.adapter, "adapter")
        checkpoint = Checkpoint(adapter=merged, learning_rate=state.learning_rate)
        state = replace(state, checkpoints=(*state.checkpoints, checkpoint))
        last = state.round == config.warm_up.rounds
        if last and enough_reviewers(adapters, config, record.missing):
            state = replace(state, reviewers=adapters)
    return state, record


def judge(
    state: RunState, config: RunConfig, replies: Mapping[str, Reply], record: RoundRecord
) -> tuple[RunState, RoundRecord]:
    """Merge what the other sites do not object to; the training round's record is completed."""
    said = {s: r for s, r in sorted(replies.items()) if isinstance(r, JudgedAdapters)}
    agreed = majority({site: reply.domains for site, reply in said.items()})
    missing = dict(record.missing) | {
        site: f"it judges on {len(reply.domains)} anchors of other domains than the others'"
        for site, reply in said.items()
        if reply.domains != agreed
    }
    said = {site: reply for site, reply in said.items() if site not in missing}
    enough(said, config, record.phase, missing)
    before = np.median(np.stack([said[site].before for site in said]), axis=0)
    losses = {
        owner: {site: reply.losses[owner] for site, reply in said.items() if owner in reply.losses}
        for owner in sorted(state.pending)
    }
    out = against_anchors(losses, before, margin=config.guards.anchor_margin)
    effects = effects_on_anchors(losses, before, agreed)
    *earlier, trained = state.records
    sites = {s: replace(one, effects=effects.get(s, {})) for s, one in trained.sites.items()}
    trained = replace(trained, sites=sites)
    state, trained = _merged(state, config, state.pending, trained, out)
    record = replace(record, sites=trained.sites, merge=trained.merge, missing=missing)
    return replace(state, records=(*earlier, trained), pending={}), record


def _merged(
    state: RunState,
    config: RunConfig,
    adapters: Mapping[str, Adapter],
    record: RoundRecord,
    left_out: Mapping[str, str],
) -> tuple[RunState, RoundRecord]:
    """The state with the merged adapter, and the round's record with weights and report."""
    warm_up = record.phase == Phase.WARM_UP.value
    counts: Mapping[str, int] = {site: record.sites[site].samples for site in adapters}
    cut: Mapping[str, str] = {}
    if not warm_up:
        counts, cut = guarded_counts(counts, state.members, config.guards)
    merged = merge_round(
        adapters,
        counts,
        given(state.adapter, "adapter"),
        state.change,
        config,
        warm_up=warm_up,
        seen=Seen(
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
    """Site → its weight in the arm's round before; empty in the first."""
    for one in reversed(state.records):
        if (one.phase, one.arm, one.round) == (record.phase, record.arm, record.round - 1):
            return {site: part.weight for site, part in one.sites.items()}
    return {}
