"""What a finished run leaves behind: adapter, record, summary, manifest, report.

Everything is a function of the committed state, so that it can be written again at any time.
"""

import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.adapters.peft_folder import export_adapter
from fedwinnow.curation.atomic_files import write_json
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import plain
from fedwinnow.curation.errors import ProtocolError
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.scores.bootstrap import paired_bootstrap
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.curation.versions import versions
from fedwinnow.server.report.page import write_report
from fedwinnow.server.run.advice import remarks, without_adapter
from fedwinnow.server.run.run_folder import Store
from fedwinnow.server.state import RoundRecord, RunState, configuration
from fedwinnow.strategies.registry import build

logger = logging.getLogger(__name__)

Tree = dict[str, Any]


def finish(
    state: RunState,
    store: Store,
    *,
    command: str = "",
    selection: Mapping[str, Any] | None = None,
) -> Tree:
    """Write the final files of a run and return its record.

    Args:
        state: A state in phase done.
        store: The run folder.
        command: The command line that reproduces the run, for the report.
        selection: Figures against planted truth, where a simulation knows it.

    Raises:
        OutputError: a file cannot be written.
        ProtocolError: the run is not done.
    """
    if state.phase != Phase.DONE.value:
        message = f"run {state.run} is in phase {state.phase}; resume it before its report is made"
        raise ProtocolError(message)
    config = configuration(state)
    record = (
        _record(state, config)
        | _clusters(state)
        | {
            "command": command,
            "remarks": [*remarks(config), *without_adapter(state.records)],
            "selection": dict(selection) if selection else None,
        }
    )
    adapter = state.finals.get("curated")
    if adapter is not None:
        export_adapter(
            adapter,
            store.folder / "adapter",
            base_name=config.model.name,
            target_modules=config.adapter.targets,
            dropout=config.adapter.dropout,
        )
        ranks = [int(factor.shape[0]) for factor in adapter.a.values()]
        record["adapter"] = {"path": "adapter", "hash": adapter_hash(adapter), "rank": max(ranks)}
    write_json(store.folder / "record.json", record)
    write_json(store.folder / "summary.json", summary_json(record))
    write_json(store.folder / "manifest.json", _manifest(state, config, record))
    write_report(record, store.folder / "report.html")
    logger.info("report: %s", store.folder / "report.html")
    return record


def _record(state: RunState, config: RunConfig) -> Tree:
    arms: Tree = {arm: _arm(state, arm) for arm in config.study.arms if arm in state.finals}
    decision = state.decision
    scorer = build("scorer", config.scorer.name, config.scorer.settings)
    value = None if decision is None else decision.value
    initial = _losses(state, "", 0)
    return {
        "run": config.run.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.run.seed,
        "seconds": float(sum(record.seconds for record in state.records)),
        "scorer": {"name": config.scorer.name, "unit": scorer.unit},
        "threshold": {
            "name": config.threshold.name,
            "value": _written(value),
            "per_site": (
                {} if decision is None else {k: _written(v) for k, v in decision.per_site.items()}
            ),
            "evidence": {} if decision is None else dict(decision.evidence),
        },
        "forecast": dict(state.forecast),
        "public": {
            "scores": list(state.public_scores),
            "kinds": list(state.kinds),
            "domains": list(state.domains),
        },
        "sites": _sites(state),
        "initial_loss": float(np.mean(initial)) if initial else None,
        "arms": arms,
        "arm_differences": _differences(arms, config),
        "phases": [
            {
                "phase": record.phase,
                "round": record.round,
                "arm": record.arm,
                "seconds": record.seconds,
                "bytes_down": record.bytes_down,
                "bytes_up": record.bytes_up,
                "missing": dict(record.missing),
            }
            for record in state.records
        ],
        "generations": _generations(state),
        "versions": versions(),
        "members": [
            {"site": c.site, "samples": c.samples, "base": c.base, "anchors": c.anchors}
            for c in state.members
        ],
        "adapter": None,
    }


def _written(threshold: float | None) -> float | str | None:
    """A threshold as strict JSON: an infinity is a word."""
    return threshold if threshold is None or np.isfinite(threshold) else str(threshold)


def _sites(state: RunState) -> list[Tree]:
    sites = []
    for card in state.members:
        summary = state.summaries.get(card.site)
        sites.append(
            {
                "site": card.site,
                "samples": card.samples,
                "kept": state.kept.get("curated", {}).get(card.site, 0),
                "unscored": state.unscored.get(card.site, 0),
                "edges": [] if summary is None else summary.edges.tolist(),
                "counts": [] if summary is None else summary.counts.tolist(),
            }
        )
    return sites


def _clusters(state: RunState) -> Tree:
    """What each cluster holds and keeps, over the sites that told it; nothing in other runs."""
    held = state.clusters
    if held is None:
        return {}
    tree = {"counts": list(held.totals), "quotas": list(held.quotas)}
    return {"clusters": tree | {"centroids": held.centroids.tolist()}}


def _arm(state: RunState, arm: str) -> Tree:
    config = configuration(state)
    rounds = [r for r in state.records if r.arm == arm and r.phase == Phase.TRAIN.value]
    last = _losses(state, arm, config.training.rounds)
    return {
        "kept": sum(state.kept[arm].values()),
        "kept_by_site": dict(state.kept[arm]),
        "steps": config.training.rounds * config.training.steps,
        "eval_loss": float(np.mean(last)) if last else None,
        "losses": list(last),
        "rounds": [_round(state, record) for record in rounds],
    }


def _round(state: RunState, record: RoundRecord) -> Tree:
    losses = _losses(state, record.arm, record.round)
    return {
        "round": record.round,
        "eval_loss": float(np.mean(losses)) if losses else None,
        "merge": dict(record.merge),
        "weights": {site: part.weight for site, part in record.sites.items()},
        "bounded": {site: part.bounded for site, part in record.sites.items() if part.bounded},
        "sites": {
            site: {"samples": part.samples, "losses": list(part.losses)}
            for site, part in record.sites.items()
        },
    }


def _losses(state: RunState, arm: str, number: int) -> tuple[float, ...]:
    """Public hold-out losses after a round of an arm; empty where none were measured."""
    for record in state.records:
        if (record.phase, record.arm, record.round) == (Phase.EVALUATE.value, arm, number):
            return record.public_losses
    return ()


def _differences(arms: Mapping[str, Tree], config: RunConfig) -> Tree:
    """Evaluation loss of each arm minus the curated arm's, with a paired bootstrap interval."""
    found = {}
    curated = arms.get("curated", {}).get("losses", [])
    for arm, result in arms.items():
        if arm == "curated" or not curated or not result["losses"]:
            continue
        mean, low, high = paired_bootstrap(
            np.asarray(result["losses"]),
            np.asarray(curated),
            seed=derive_seed(config.run.seed, "bootstrap", arm),
        )
        found[arm] = {"mean": mean, "low": low, "high": high, "reference": "curated"}
    return found


def _generations(state: RunState) -> Tree:
    shown = [record for record in state.records if record.generations]
    if not shown:
        return {"prompts": [], "references": [], "before": [], "after": []}
    before, after = shown[0], shown[-1]
    return {
        "prompts": list(before.prompts),
        "references": list(before.references),
        "before": list(before.generations),
        "after": list(after.generations) if after is not before else [],
    }


def _manifest(state: RunState, config: RunConfig, record: Tree) -> Tree:
    section = config.training
    return {
        "run": state.run,
        "name": config.run.name,
        "seed": config.run.seed,
        "versions": record["versions"],
        "members": [plain(card) for card in state.members],
        "adapter": record["adapter"],
        "threshold": record["threshold"],
        "plugins": {
            "scorer": plain(config.scorer),
            "threshold": plain(config.threshold),
            "ordering": plain(section.ordering),
            "objective": plain(section.objective),
            "weighting": plain(config.weighting),
            "merging": plain(config.merging),
        },
        "privacy": {
            "mode": "inspectable",
            "smallest_cell": config.summary.smallest_cell,
            "noise": "none",
        },
        "missing": [plain(r.missing) | {"phase": r.phase} for r in state.records if r.missing],
    }


def summary_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a run's record; strict JSON, where an infinite threshold is null."""
    value = record["threshold"]["value"]
    finite = isinstance(value, int | float) and math.isfinite(value)
    return {
        "run": record["run"],
        "seconds": record["seconds"],
        "scorer": record["scorer"]["name"],
        "threshold": value if finite else None,
        "sites": [
            {"site": site["site"], "samples": site["samples"], "kept": site["kept"]}
            for site in record["sites"]
        ],
        "arms": {
            name: {key: arm[key] for key in ("eval_loss", "kept", "steps")}
            for name, arm in record["arms"].items()
        },
        "selection": record["selection"],
        "adapter": record["adapter"]["path"] if record["adapter"] else None,
    }
