"""Build the record of a finished run from its committed state."""

from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.scores.bootstrap import paired_bootstrap
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.curation.versions import versions
from fedwinnow.server.report.comparisons import ArmDifference, SelectionFigures
from fedwinnow.server.report.record import (
    RecordedAdapter,
    RecordedArm,
    RecordedClusters,
    RecordedContribution,
    RecordedGenerations,
    RecordedMember,
    RecordedPhase,
    RecordedPublicRows,
    RecordedRound,
    RecordedScorer,
    RecordedSite,
    RecordedThreshold,
    RunRecord,
)
from fedwinnow.server.run.advice import run_remarks, sites_without_adapter
from fedwinnow.server.state import RoundRecord, RunState, run_config
from fedwinnow.strategies.registry import build


def build_record(
    state: RunState,
    *,
    command: str = "",
    selection: SelectionFigures | None = None,
    adapter: RecordedAdapter | None = None,
) -> RunRecord:
    """Return the record of a state in phase done.

    Args:
        state: The state.
        command: The command line that reproduces the run; "" where it is not known.
        selection: Figures against planted truth, where a simulation knows it.
        adapter: The curated adapter as it was exported; None where the arm kept nothing.
    """
    config = run_config(state)
    arms: dict[str, RecordedArm] = {
        arm: _arm(state, arm, config) for arm in config.study.arms if arm in state.finals
    }
    scorer = build("scorer", config.scorer.name, config.scorer.settings)
    initial = _losses(state, "", 0)
    return RunRecord(
        run=config.run.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=config.run.seed,
        seconds=float(sum(record.seconds for record in state.records)),
        scorer=RecordedScorer(name=config.scorer.name, unit=scorer.unit),
        threshold=_threshold(state, config),
        forecast=dict(state.forecast),
        public=RecordedPublicRows(
            scores=tuple(state.public_scores), kinds=state.kinds, domains=state.domains
        ),
        sites=_sites(state),
        initial_loss=_mean(initial),
        arms=arms,
        arm_differences=_differences(arms, config),
        phases=tuple(_phase(record) for record in state.records),
        generations=_generations(state),
        versions=versions(),
        members=tuple(
            RecordedMember(site=c.site, samples=c.samples, base=c.base, anchors=c.anchors)
            for c in state.members
        ),
        adapter=adapter,
        clusters=_clusters(state),
        command=command,
        remarks=(*run_remarks(config), *sites_without_adapter(state.records)),
        selection=selection,
    )


def _threshold(state: RunState, config: RunConfig) -> RecordedThreshold:
    decision = state.decision
    return RecordedThreshold(
        name=config.threshold.name,
        value=None if decision is None else decision.value,
        per_site={} if decision is None else dict(decision.per_site),
        evidence={} if decision is None else dict(decision.evidence),
    )


def _sites(state: RunState) -> tuple[RecordedSite, ...]:
    sites = []
    for card in state.members:
        summary = state.summaries.get(card.site)
        sites.append(
            RecordedSite(
                site=card.site,
                samples=card.samples,
                kept=state.kept.get("curated", {}).get(card.site, 0),
                unscored=state.unscored.get(card.site, 0),
                edges=() if summary is None else tuple(summary.edges.tolist()),
                counts=() if summary is None else tuple(summary.counts.tolist()),
            )
        )
    return tuple(sites)


def _phase(record: RoundRecord) -> RecordedPhase:
    return RecordedPhase(
        phase=record.phase,
        round=record.round,
        arm=record.arm,
        seconds=record.seconds,
        bytes_down=record.bytes_down,
        bytes_up=record.bytes_up,
        missing=dict(record.missing),
    )


def _clusters(state: RunState) -> RecordedClusters | None:
    """Return the clusters' counts, quotas and centroids over all sites; None in other runs."""
    held = state.clusters
    if held is None:
        return None
    return RecordedClusters(
        counts=held.totals, quotas=held.quotas, centroids=tuple(map(tuple, held.centroids.tolist()))
    )


def _arm(state: RunState, arm: str, config: RunConfig) -> RecordedArm:
    rounds = [r for r in state.records if r.arm == arm and r.phase == Phase.TRAIN.value]
    last = _losses(state, arm, config.training.rounds)
    return RecordedArm(
        kept=sum(state.kept[arm].values()),
        kept_by_site=dict(state.kept[arm]),
        steps=config.training.rounds * config.training.steps,
        eval_loss=_mean(last),
        losses=last,
        rounds=tuple(_round(state, record) for record in rounds),
    )


def _round(state: RunState, record: RoundRecord) -> RecordedRound:
    return RecordedRound(
        round=record.round,
        eval_loss=_mean(_losses(state, record.arm, record.round)),
        merge=dict(record.merge),
        weights={site: part.weight for site, part in record.sites.items()},
        bounded={site: part.bounded for site, part in record.sites.items() if part.bounded},
        sites={
            site: RecordedContribution(samples=part.samples, losses=part.losses)
            for site, part in record.sites.items()
        },
    )


def _losses(state: RunState, arm: str, number: int) -> tuple[float, ...]:
    """Return the public hold-out losses after a round of an arm; empty where none were measured."""
    for record in state.records:
        if (record.phase, record.arm, record.round) == (Phase.EVALUATE.value, arm, number):
            return record.public_losses
    return ()


def _mean(losses: tuple[float, ...]) -> float | None:
    return float(np.mean(losses)) if losses else None


def _differences(arms: Mapping[str, RecordedArm], config: RunConfig) -> dict[str, ArmDifference]:
    """Return arm → evaluation loss minus the curated arm's, with a paired bootstrap interval."""
    found = {}
    curated = arms["curated"].losses if "curated" in arms else ()
    for arm, result in arms.items():
        if arm == "curated" or not curated or not result.losses:
            continue
        mean, low, high = paired_bootstrap(
            np.asarray(result.losses),
            np.asarray(curated),
            seed=derive_seed(config.run.seed, "bootstrap", arm),
        )
        found[arm] = ArmDifference(mean=mean, low=low, high=high, reference="curated")
    return found


def _generations(state: RunState) -> RecordedGenerations:
    shown = [record for record in state.records if record.generations]
    if not shown:
        return RecordedGenerations(prompts=(), references=(), before=(), after=())
    before, after = shown[0], shown[-1]
    return RecordedGenerations(
        prompts=before.prompts,
        references=before.references,
        before=before.generations,
        after=after.generations if after is not before else (),
    )
