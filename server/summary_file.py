"""``summary.json``: the figures of a run that a program reads, and nothing else."""

import math
from collections.abc import Mapping
from typing import Any


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
