"""What each phase makes of its replies; one pure function a phase, used by :mod:`server.rounds`.

Public rows are functions of (base, adapter, anchors, seeds) only, so honest sites agree: the median
over sites counts, and a site that is further from it than ``TOLERANCE`` is refused by name.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np

from fedwinnow.curation.adapters.algebra import adapter_hash
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.datatypes import PublicScores, SignalTable
from fedwinnow.curation.protocol.agreement import disagreement
from fedwinnow.curation.protocol.messages import (
    Joined,
    KeptReply,
    MetricsReply,
    PublicSignals,
    Reply,
    SummaryReply,
)
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.server.aggregation.count_guards import middle_summaries
from fedwinnow.server.phases.cluster import cluster
from fedwinnow.server.phases.quorum import enough, majority
from fedwinnow.server.phases.train import judge, train
from fedwinnow.server.reviewers import enough_reviewers
from fedwinnow.server.state import RoundRecord, RunState
from fedwinnow.strategies.interfaces.merging import Threshold
from fedwinnow.strategies.registry import build

logger = logging.getLogger(__name__)

SCORE_TOLERANCE = 1e-6
"""Largest difference between the sites' scores of the public rows (design, section 4)."""

R = TypeVar("R")

Replies = Mapping[str, Reply]
Outcome = tuple[RunState, RoundRecord]
Step = Callable[[RunState, RunConfig, Replies, RoundRecord], Outcome]


def join(state: RunState, config: RunConfig, replies: Replies, record: RoundRecord) -> Outcome:
    """Members are the sites that hold the same base, anchors and initial adapter."""
    joined = _as(replies, Joined)
    keys = {
        site: (
            reply.card.base,
            reply.card.anchors,
            adapter_hash(reply.adapter),
            reply.card.teacher,
        )
        for site, reply in joined.items()
    }
    agreed = majority(keys)
    missing = dict(record.missing)
    for site, key in keys.items():
        for name, mine, theirs in zip(
            ("base", "anchors", "initial adapter", "teacher"), key, agreed, strict=True
        ):
            if mine != theirs:
                missing[site] = f"{name} {mine[:12]} differs from the others' {theirs[:12]}"
    members = tuple(joined[site].card for site in sorted(joined) if site not in missing)
    enough(members, config, record.phase, missing)
    enough_reviewers([card.site for card in members], config, missing)
    initial = next(joined[card.site].adapter for card in members)
    state = replace(state, members=members, initial=initial, adapter=initial)
    return state, replace(record, missing=missing)


def public(state: RunState, config: RunConfig, replies: Replies, record: RoundRecord) -> Outcome:
    """Agree on the public rows of one checkpoint."""
    rows = _as(replies, PublicSignals)
    missing = dict(record.missing)
    agreed = majority({site: layout(reply) for site, reply in rows.items()})
    for site, reply in rows.items():
        if layout(reply) != agreed:
            missing[site] = "its public rows are not those of the other sites"
    rows = {site: reply for site, reply in rows.items() if site not in missing}
    first = rows[min(rows)]
    table, strangers = _median({site: reply.table for site, reply in rows.items()})
    missing.update(strangers)
    enough([site for site in rows if site not in strangers], config, record.phase, missing)
    state = replace(
        state,
        tables=(*state.tables, table),
        kinds=first.kinds,
        parents=first.parents,
        domains=first.table.domains,
    )
    return state, replace(record, missing=missing)


def score(state: RunState, config: RunConfig, replies: Replies, record: RoundRecord) -> Outcome:
    """Merge summaries and set the threshold."""
    said, missing = _as(replies, SummaryReply), dict(record.missing)
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
    enough(said, config, record.phase, missing)
    middle = np.median(np.stack([said[site].public_scores for site in said]), axis=0)
    for site, reply in sorted(said.items()):
        apart = float(np.abs(reply.public_scores - middle).max(initial=0.0))
        if apart > SCORE_TOLERANCE * max(1.0, float(np.abs(middle).max(initial=0.0))):
            missing[site] = f"its scores of the public rows differ from the median by {apart:.2g}"
    said = {site: reply for site, reply in said.items() if site not in missing}
    enough(said, config, record.phase, missing)
    summaries = {site: said[site].summary for site in sorted(said)}
    threshold: Threshold = build("threshold", config.threshold.name, config.threshold.settings)
    heard = middle_summaries(summaries) if config.guards.summaries == "median" else summaries
    decision = threshold(
        heard, PublicScores(scores=middle, kinds=state.kinds, domains=state.domains)
    )
    first = said[min(said)]
    logger.info("threshold %s = %.6g", config.threshold.name, decision.value)
    state = replace(
        state,
        summaries=summaries,
        unscored={site: said[site].unscored for site in sorted(said)},
        public_scores=tuple(float(value) for value in middle),
        forecast=dict(first.forecast),
        decision=decision,
    )
    return state, replace(record, missing=missing)


def select(state: RunState, config: RunConfig, replies: Replies, record: RoundRecord) -> Outcome:
    """Note how many samples each site keeps."""
    said = _as(replies, KeptReply)
    kept: dict[str, dict[str, int]] = {
        str(arm): {site: said[site].kept.get(arm, 0) for site in sorted(said)}
        for arm in config.study.arms
    }
    logger.info("kept %d samples at %d sites", sum(kept["curated"].values()), len(said))
    return replace(state, kept=kept), record


def evaluate(state: RunState, config: RunConfig, replies: Replies, record: RoundRecord) -> Outcome:
    """Median public losses; sums over the sites' own hold-outs."""
    said, missing = _as(replies, MetricsReply), dict(record.missing)
    anchors = majority({site: len(reply.public_losses) for site, reply in said.items()})
    missing |= {
        site: f"it evaluates {len(reply.public_losses)} public anchors, the others {anchors}"
        for site, reply in said.items()
        if len(reply.public_losses) != anchors
    }
    said = {site: reply for site, reply in said.items() if site not in missing}
    enough(said, config, record.phase, missing)
    losses = np.median(np.stack([said[site].public_losses for site in said]), axis=0)
    first = said[min(said)]
    record = replace(
        record,
        public_losses=tuple(float(value) for value in losses),
        own_loss_sum=float(sum(said[site].own.loss_sum for site in sorted(said))),
        own_samples=sum(reply.own.samples for reply in said.values()),
        prompts=first.prompts,
        references=first.references,
        generations=first.generations,
        missing=missing,
    )
    return state, record


def close(state: RunState, config: RunConfig, replies: Replies, record: RoundRecord) -> Outcome:  # noqa: ARG001 - every step has the same form
    """The run is done."""
    return state, record


STEPS: Mapping[Phase, Step] = {
    Phase.JOIN: join,
    Phase.PROBE: public,
    Phase.WARM_UP: train,
    Phase.MEASURE: public,
    Phase.SCORE: score,
    Phase.CLUSTER: cluster,
    Phase.SELECT: select,
    Phase.TRAIN: train,
    Phase.JUDGE: judge,
    Phase.EVALUATE: evaluate,
    Phase.CLOSE: close,
}


def _as(replies: Replies, cls: type[R]) -> dict[str, R]:
    """Replies of one class, by site in order of name; others were sifted out before."""
    return {site: reply for site, reply in sorted(replies.items()) if isinstance(reply, cls)}


def layout(reply: PublicSignals) -> tuple[object, ...]:
    """Everything of public rows but the measured numbers: it must be equal at every site."""
    table = reply.table
    columns = tuple((name, table.columns[name].shape) for name in sorted(table.columns))
    head = (table.ids, table.domains, table.checkpoint, table.references, table.learning_rate)
    sizes = (table.status.tobytes(), table.reference_gram.shape)
    return (*head, reply.kinds, reply.parents, columns, *sizes)


def _median(tables: Mapping[str, SignalTable]) -> tuple[SignalTable, dict[str, str]]:
    """The element-wise median table, and why a site is too far from it."""
    ordered = [tables[site] for site in sorted(tables)]
    first = ordered[0]
    columns = {
        name: np.median(np.stack([table.columns[name] for table in ordered]), axis=0).astype(
            first.columns[name].dtype
        )
        for name in sorted(first.columns)
    }
    gram = np.median(np.stack([table.reference_gram for table in ordered]), axis=0)
    strangers = {}
    for site, table in sorted(tables.items()):
        if why := disagreement(table, columns, gram):
            strangers[site] = why
    return replace(first, columns=columns, reference_gram=gram), strangers
