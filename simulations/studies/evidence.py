"""From records of runs to rows, differences and shares: the numbers of an evidence table."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedwinnow.client.data.anchors import split_of
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.run_files import simulated_run_files
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.scores.bootstrap import paired_bootstrap
from fedwinnow.simulations.studies.unforeseen_kinds import left_out

Tree = dict[str, Any]
_RESAMPLES = 4000
ENDS = ("keep_all", "oracle")
"""Arms that the gap lies between."""


def evidence_rows(
    name: str,
    split: str,
    record: Tree,
    config: RunConfig,
    commit: str | None,
    yardstick: Tree | None = None,
) -> list[Tree]:
    """One row per scorer and one per arm, in the words of the project's evidence tables.

    Args:
        name: The study's.
        split: The split's.
        record: The run's ``record.json``.
        config: The run's configuration.
        commit: Of the code that ran.
        yardstick: Record of the same seed whose keep_all and oracle measure the gap where this one
            has none; its data are the same.

    Raises:
        OutputError: the run folder holds no finished run of these settings.
    """
    selection = record["selection"] or {}
    scorers = {record["scorer"]["name"]: selection, **selection.get("comparison", {})}
    common = {
        "study": name,
        "model": Path(config.model.gguf_file or config.model.name).name,
        "dataset": ", ".join(site["site"] for site in record["sites"]),
        "split": split,
        "n_private": sum(site["samples"] for site in record["sites"]),
        "n_anchors": record["public"]["kinds"].count("clean"),
        "noise_mix": ", ".join(selection.get("auroc_by_corruption", {})),
        "seed": record["seed"],
        "seconds": record["seconds"],
        "commit": commit,
    }
    unforeseen, domains = left_out(config), _holdout_domains(config)
    gauged, kept = gauge(record, yardstick)["arms"], _kept_by_domain(config, record["arms"])
    rows = [
        common
        | {"scorer": scorer}
        | _figures(record, scorer, figures, unforeseen if scorer == config.scorer.name else {})
        for scorer, figures in scorers.items()
        if figures
    ]
    rows += [
        common
        | {
            "scorer": record["scorer"]["name"],
            "threshold": record["threshold"]["name"],
            "arm": arm,
            "kept": result["kept"],
            "kept_by_domain": kept[arm],
            "steps": result["steps"],
            "eval_loss": result["eval_loss"],
            "eval_loss_by_domain": _by_domain(result["losses"], domains),
            "gap_recovered": _recovered(gauged, arm),
        }
        for arm, result in record["arms"].items()
    ]
    return rows


def _kept_by_domain(config: RunConfig, arms: Iterable[str]) -> dict[str, dict[str, int]]:
    """Arm → domain → samples of all silos that it trains on."""
    found: dict[str, Counter[str]] = {arm: Counter() for arm in arms}
    for site in config.sites:
        files = simulated_run_files(config, site.name)
        domains = tables.read_signals(files.signals(0)).domains
        for arm, counts in found.items():
            kept = tables.read_kept(files.selection, arm)
            counts.update(name for name, here in zip(domains, kept, strict=True) if here)
    return {arm: dict(sorted(counts.items())) for arm, counts in found.items()}


def _figures(record: Tree, scorer: str, figures: Tree, unforeseen: Mapping[str, float]) -> Tree:
    """What one scorer reaches against the planted truth."""
    deciding = scorer == record["scorer"]["name"]
    by_corruption = figures.get("auroc_by_corruption", {})
    return {
        "threshold": record["threshold"]["name"] if deciding else "same count",
        "arm": None,
        "auroc_pooled": figures.get("auroc"),
        "auroc_within": figures.get("auroc_within"),
        "auroc_by_corruption": by_corruption,
        "auroc_swap": by_corruption.get("swap"),
        "auroc_left_out": float(np.mean([*unforeseen.values()])) if unforeseen else None,
        "auroc_left_out_by_corruption": dict(unforeseen),
        "recall": figures.get("recall"),
        "recall_by_site": figures.get("recall_by_site", {}),
        "precision": figures.get("precision"),
        "accuracy": figures.get("accuracy"),
        "eval_loss": None,
        "gap_recovered": None,
    }


def _recovered(arms: Mapping[str, Tree], arm: str) -> float | None:
    """(keep_all − arm) / (keep_all − oracle): share of the gap to the oracle, None without one."""
    if "keep_all" not in arms or "oracle" not in arms:
        return None
    gap = arms["keep_all"]["eval_loss"] - arms["oracle"]["eval_loss"]
    return None if gap <= 0 else (arms["keep_all"]["eval_loss"] - arms[arm]["eval_loss"]) / gap


def gauge(record: Tree, yardstick: Tree | None) -> Tree:
    """The record, with keep_all and oracle of another run on the same data where it has none."""
    if yardstick is None:
        return record
    ends = {arm: yardstick["arms"][arm] for arm in ENDS if arm in yardstick["arms"]}
    return {**record, "arms": {**ends, **record["arms"]}}


def differences(records: Sequence[Tree]) -> Tree:
    """Arm minus curated over the items of all seeds, mean and 95 % interval; and seed by seed."""
    found: Tree = {}
    for arm in records[0]["arms"]:
        if arm == "curated" or not all(arm in record["arms"] for record in records):
            continue
        theirs = np.concatenate([record["arms"][arm]["losses"] for record in records])
        curated = np.concatenate([record["arms"]["curated"]["losses"] for record in records])
        mean, low, high = paired_bootstrap(theirs, curated, seed=0)
        by_seed = {
            str(record["seed"]): record["arm_differences"][arm]
            for record in records
            if arm in record["arm_differences"]
        }
        found[arm] = {
            "mean": mean,
            "low": low,
            "high": high,
            "items": len(curated),
            "by_seed": by_seed,
        }
    return found


def recovered(records: Sequence[Tree]) -> Tree | None:
    """Share of the gap between keep_all and oracle that curated closes, over all seeds' items.

    (keep_all − curated) / (keep_all − oracle) of the mean losses, with the 95 % interval over
    resampled items; None where an arm is missing or the gap is not above 0.
    """
    arms = ("keep_all", "curated", "oracle")
    if not all(arm in record["arms"] for record in records for arm in arms):
        return None
    all_of_it, curated, oracle = (
        np.concatenate([record["arms"][arm]["losses"] for record in records]) for arm in arms
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
    return {"share": share, "low": float(low), "high": float(high), "gap": gap}


def between(finished: Mapping[str, Sequence[Tree]]) -> Tree:
    """Curated arm of each split minus that of the first, item by item over all seeds."""
    (first, base), *others = finished.items()
    found: Tree = {first: None}
    reference = np.concatenate([record["arms"]["curated"]["losses"] for record in base])
    for split, records in others:
        theirs = np.concatenate([record["arms"]["curated"]["losses"] for record in records])
        mean, low, high = paired_bootstrap(theirs, reference, seed=0)
        found[split] = {"mean": mean, "low": low, "high": high, "items": len(theirs)}
    return found


def _holdout_domains(config: RunConfig) -> list[str]:
    """Domain of each public hold-out item, in the order of the losses."""
    split = split_of(config.anchors, config.run.seed)
    return [sample.domain for sample in split.holdout]


def _by_domain(losses: Sequence[float], domains: Sequence[str]) -> dict[str, float]:
    """Mean loss of each domain's items; empty where items without a target were left out."""
    if len(losses) != len(domains) or len(set(domains)) == 1:
        return {}
    known = np.array(domains)
    values = np.asarray(losses)
    return {name: float(values[known == name].mean()) for name in sorted(set(domains))}
