"""A realistic record of a finished run, made by a seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedwinnow.curation.config.typed_json import parse_tree
from fedwinnow.server.report.record import RunRecord

SITES = ("medicine", "finance", "law")
KINDS = ("swap", "cut", "noise")


def make_record(changes: Mapping[str, Any] | None = None, *, seed: int = 0) -> RunRecord:
    """A whole record, or one whose tree has other values under some keys."""
    return parse_tree(make_tree(seed) | dict(changes or {}), RunRecord)


def arm_tree(losses: Sequence[float]) -> dict[str, Any]:
    """The tree of an arm with these hold-out losses, and no round."""
    return {
        "kept": 60, "kept_by_site": dict.fromkeys(SITES, 20), "steps": 10,
        "eval_loss": float(np.mean(losses)), "losses": list(losses), "rounds": [],
    }  # fmt: skip


def make_tree(seed: int = 0) -> dict[str, Any]:
    """The tree of a whole record, as it stands in ``record.json``."""
    random = np.random.default_rng(seed)
    edges = np.linspace(0.01, 0.99, 17).tolist()
    figures = {
        "auroc": 0.95, "auroc_within": 0.93, "precision": 0.9, "recall": 0.88, "accuracy": 0.9,
        "f1": 0.89, "auroc_by_corruption": dict.fromkeys(KINDS, 0.9),
        "recall_by_site": dict.fromkeys(SITES, 0.85),
    }  # fmt: skip

    def arm(loss: float) -> dict[str, Any]:
        part = {"samples": 20, "losses": random.uniform(2, 3, 5).tolist()}
        rounds = [
            {
                "round": number, "eval_loss": loss, "merge": {"discarded_energy": 0.1},
                "weights": dict.fromkeys(SITES, 1 / 3), "sites": dict.fromkeys(SITES, part),
            }
            for number in (1, 2)
        ]  # fmt: skip
        losses = random.normal(loss, 0.1, 12).tolist()
        return arm_tree(losses) | {"eval_loss": loss, "rounds": rounds}

    return {
        "run": "demo", "created": "2026-01-01T00:00:00+00:00", "command": "fedwinnow demo",
        "seed": seed, "seconds": 600.0, "scorer": {"name": "calibrated", "unit": "probability"},
        "threshold": {
            "name": "target_recall", "value": 0.4, "per_site": {},
            "evidence": {"expected_recall": 0.9, "clean_share": 0.6, "expected_precision": 0.9,
                         "corrupted_pass": 0.1, "rank_error": 0.02, "inseparable": 0.0},
        },
        "forecast": {"auroc": 0.94} | {f"auroc_{k}": 0.9 for k in KINDS}
        | {f"auroc_left_out_{k}": 0.8 for k in KINDS},
        "public": {
            "scores": random.uniform(0, 1, 40).tolist(),
            "kinds": ["clean", "swap", "cut", "noise"] * 10, "domains": ["law"] * 40,
        },
        "sites": [
            {"site": site, "samples": 48, "kept": 20 + place, "unscored": 0, "edges": edges,
             "counts": random.uniform(0, 5, len(edges) + 1).tolist()}
            for place, site in enumerate(SITES)
        ],
        "initial_loss": 3.0,
        "arms": {"curated": arm(2.5), "keep_all": arm(2.6), "oracle": arm(2.45)},
        "arm_differences": {
            "keep_all": {"mean": 0.1, "low": 0.02, "high": 0.2, "reference": "curated"}
        },
        "selection": figures | {"comparison": {"perplexity": figures, "ifd": figures}},
        "phases": [
            {"phase": phase, "round": 0, "arm": "", "seconds": 10.0, "bytes_down": 10**6,
             "bytes_up": 2 * 10**6, "missing": {}}
            for phase in ("join", "probe", "train")
        ],
        "generations": {
            "prompts": ["Why?"], "references": ["So."], "before": ["No."], "after": ["So."],
        },
        "versions": {"torch": "2.13"},
        "members": [
            {"site": site, "samples": 48, "base": "ab" * 32, "anchors": "cd" * 32} for site in SITES
        ],
        "adapter": {"path": "adapter", "hash": "ef" * 32, "rank": 16},
    }  # fmt: skip
