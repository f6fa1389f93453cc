"""Compute the rows, differences and shares of an evidence table from records of runs."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedwinnow.client.data.anchors import split_scenario_anchors
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.run_files import simulated_run_files
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.scores.bootstrap import paired_bootstrap
from fedwinnow.server.report.comparisons import ScorerFigures
from fedwinnow.server.report.record import RecordedArm, RunRecord
from fedwinnow.simulations.studies.result import (
    ArmRow,
    GapShare,
    PooledDifference,
    ScorerRow,
    SplitDifference,
    StudiedRun,
)
from fedwinnow.simulations.studies.unforeseen_kinds import aurocs_on_unforeseen

_RESAMPLES = 4000
ENDS = ("keep_all", "oracle")
"""Arms between which the gap is measured."""


def evidence_rows(
    name: str,
    split: str,
    record: RunRecord,
    config: RunConfig,
    commit: str | None,
    yardstick: RunRecord | None = None,
) -> list[ScorerRow | ArmRow]:
    """Return one row per scorer and one per arm.

    Args:
        name: Name of the study.
        split: Name of the split.
        record: The run's record.
        config: The run's configuration.
        commit: Commit of the code that ran.
        yardstick: Record of the same seed and data, whose keep_all and oracle measure the gap where
            this record lacks them.

    Raises:
        OutputError: the run folder holds no finished run of these settings.
    """
    planted = {} if record.selection is None else record.selection.auroc_by_corruption
    run = StudiedRun(
        study=name,
        model=Path(config.model.gguf_file or config.model.name).name,
        dataset=", ".join(site.site for site in record.sites),
        split=split,
        n_private=record.samples,
        n_anchors=record.public.kinds.count("clean"),
        noise_mix=", ".join(planted),
        seed=record.seed,
        seconds=record.seconds,
        commit=commit,
    )
    unforeseen, domains = aurocs_on_unforeseen(config), _holdout_domains(config)
    gauged, kept = with_reference_arms(record, yardstick).arms, _kept_by_domain(config, record.arms)
    scorers = [
        _scorer_row(run, record, scorer, figures, unforeseen)
        for scorer, figures in record.figures_by_scorer.items()
    ]
    arms = [
        ArmRow(
            run=run,
            scorer=record.scorer.name,
            threshold=record.threshold.name,
            arm=arm,
            kept=result.kept,
            kept_by_domain=kept[arm],
            steps=result.steps,
            eval_loss=result.eval_loss,
            eval_loss_by_domain=_by_domain(result.losses, domains),
            gap_recovered=_recovered(gauged, arm),
        )
        for arm, result in record.arms.items()
    ]
    return [*scorers, *arms]


def _kept_by_domain(config: RunConfig, arms: Iterable[str]) -> dict[str, dict[str, int]]:
    """Return arm → domain → number of samples of all silos that it trains on."""
    found: dict[str, Counter[str]] = {arm: Counter() for arm in arms}
    for site in config.sites:
        files = simulated_run_files(config, site.name)
        domains = tables.read_signals(files.signals(0)).domains
        for arm, counts in found.items():
            kept = tables.read_kept(files.selection, arm)
            counts.update(name for name, here in zip(domains, kept, strict=True) if here)
    return {arm: dict(sorted(counts.items())) for arm, counts in found.items()}


def _scorer_row(
    run: StudiedRun,
    record: RunRecord,
    scorer: str,
    figures: ScorerFigures,
    unforeseen: Mapping[str, float],
) -> ScorerRow:
    """Return one scorer's row; only the run's own was fitted without each kind of corruption."""
    deciding = scorer == record.scorer.name
    left = dict(unforeseen) if deciding else {}
    return ScorerRow(
        run=run,
        scorer=scorer,
        threshold=record.threshold.name if deciding else "same count",
        auroc_pooled=figures.auroc,
        auroc_within=figures.auroc_within,
        auroc_by_corruption=figures.auroc_by_corruption,
        auroc_swap=figures.auroc_by_corruption.get("swap"),
        auroc_left_out=float(np.mean([*left.values()])) if left else None,
        auroc_left_out_by_corruption=left,
        recall=figures.recall,
        recall_by_site=figures.recall_by_site,
        precision=figures.precision,
        accuracy=figures.accuracy,
    )


def _recovered(arms: Mapping[str, RecordedArm], arm: str) -> float | None:
    """Return (keep_all − arm) / (keep_all − oracle), the share of the gap; None without a gap."""
    if "keep_all" not in arms or "oracle" not in arms:
        return None
    everything, best = arms["keep_all"].eval_loss, arms["oracle"].eval_loss
    mine = arms[arm].eval_loss
    if everything is None or best is None or mine is None or everything <= best:
        return None
    return (everything - mine) / (everything - best)


def with_reference_arms(record: RunRecord, yardstick: RunRecord | None) -> RunRecord:
    """Return the record; missing ends of the gap are taken from a run on the same data."""
    if yardstick is None:
        return record
    ends = {arm: yardstick.arms[arm] for arm in ENDS if arm in yardstick.arms}
    return replace(record, arms={**ends, **record.arms})


def arm_differences(records: Sequence[RunRecord]) -> dict[str, PooledDifference]:
    """Return arm → its loss minus curated's, over the items of all seeds and seed by seed."""
    found = {}
    for arm in records[0].arms:
        if arm == "curated" or not all(arm in record.arms for record in records):
            continue
        theirs = np.concatenate([record.arms[arm].losses for record in records])
        curated = np.concatenate([record.arms["curated"].losses for record in records])
        mean, low, high = paired_bootstrap(theirs, curated, seed=0)
        by_seed = {
            str(record.seed): record.arm_differences[arm]
            for record in records
            if arm in record.arm_differences
        }
        found[arm] = PooledDifference(
            mean=mean, low=low, high=high, items=len(curated), by_seed=by_seed
        )
    return found


def recovered_share(records: Sequence[RunRecord]) -> GapShare | None:
    """Return the share of the gap from keep_all to oracle that curated closes, over all items.

    (keep_all − curated) / (keep_all − oracle) of the mean losses, with the 95 % interval over
    resampled items; None where an arm is missing or the gap is not above 0.
    """
    arms = ("keep_all", "curated", "oracle")
    if not all(arm in record.arms for record in records for arm in arms):
        return None
    all_of_it, curated, oracle = (
        np.concatenate([record.arms[arm].losses for record in records]) for arm in arms
    )
    gap = float((all_of_it - oracle).mean())
    if gap <= 0:
        return None
    drawn = np.random.default_rng(0).integers(0, len(oracle), size=(_RESAMPLES, len(oracle)))
    gaps = (all_of_it - oracle)[drawn].mean(axis=1)
    closed = (all_of_it - curated)[drawn].mean(axis=1)
    shares = closed[gaps > 0] / gaps[gaps > 0]
    low, high = np.quantile(shares, [0.025, 0.975])
    share = float((all_of_it - curated).mean()) / gap
    return GapShare(share=share, low=float(low), high=float(high), gap=gap)


def difference_of_splits(
    finished: Mapping[str, Sequence[RunRecord]],
) -> dict[str, SplitDifference | None]:
    """Return the curated arm of each split minus that of the first, item by item over all seeds."""
    (first, base), *others = finished.items()
    found: dict[str, SplitDifference | None] = {first: None}
    reference = np.concatenate([record.arms["curated"].losses for record in base])
    for split, records in others:
        theirs = np.concatenate([record.arms["curated"].losses for record in records])
        mean, low, high = paired_bootstrap(theirs, reference, seed=0)
        found[split] = SplitDifference(mean=mean, low=low, high=high, items=len(theirs))
    return found


def _holdout_domains(config: RunConfig) -> list[str]:
    """Return the domain of each public hold-out item, in the order of the losses."""
    split = split_scenario_anchors(config.anchors, config.run.seed)
    return [sample.domain for sample in split.holdout]


def _by_domain(losses: Sequence[float], domains: Sequence[str]) -> dict[str, float]:
    """Return each domain's mean loss; empty for a single domain or where items were left out."""
    if len(losses) != len(domains) or len(set(domains)) == 1:
        return {}
    known = np.array(domains)
    values = np.asarray(losses)
    return {name: float(values[known == name].mean()) for name in sorted(set(domains))}
