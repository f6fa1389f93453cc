"""A scenario over several seeds, with its arms and comparison scorers, as committed evidence.

Writes NAME.json (one row per seed and scorer or arm), NAME.md (tables with mean and range) and
NAME.svg. Evaluation losses are compared item by item on the public hold-out of every seed: the
paired bootstrap resamples items within seeds.
"""

import json
import logging
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedwinnow.client.workshop import Workshop
from fedwinnow.curation.config import RunConfig
from fedwinnow.curation.errors import OutputError
from fedwinnow.curation.files import write, write_json
from fedwinnow.curation.scenario import run_id
from fedwinnow.server.driver import Progress
from fedwinnow.server.statistics import paired_bootstrap
from fedwinnow.simulations.in_process import simulate
from fedwinnow.simulations.left_out import left_out
from fedwinnow.simulations.study_page import page, picture

logger = logging.getLogger(__name__)

Tree = dict[str, Any]


def study(
    name: str,
    seeds: Sequence[int],
    splits: Mapping[str, Callable[[int], RunConfig]],
    *,
    folder: Path,
    command: str,
    about: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    workshop: Workshop | None = None,
) -> Tree:
    """Run every split of a scenario for every seed and write the evidence files.

    A seed whose run folder already holds a finished run of the same settings is not run again.

    Args:
        name: Name of the study and of its files.
        seeds: Seeds of data, corruption, model and order.
        splits: Name of a split → (seed → configuration); called right before the seed's run.
        folder: Where NAME.json, NAME.md and NAME.svg go.
        command: The command line, for the page.
        about: Name of a split → what it is for, for the page.
        progress: Told of every delivery.
        workshop: A warm model, or None.

    Raises:
        CurationError: whatever stops a run.
    """
    rows: list[Tree] = []
    differences: Tree = {}
    shared = workshop or Workshop()
    for split, configure in splits.items():
        records: list[Tree] = []
        for seed in seeds:
            config = configure(seed)
            run = Path(config.run.output) / config.run.name
            if not _finished(run, config):
                simulate(config, resume=True, progress=progress, command=command, workshop=shared)
            record = json.loads((run / "record.json").read_text(encoding="utf-8"))
            rows += _rows(name, split, record, config)
            records.append(record)
            logger.info("study %s, split %s: seed %d done", name, split, seed)
        differences[split] = _differences(records)
    result = {
        "study": name,
        "command": command,
        "machine": _machine(),
        "commit": _commit(),
        "seeds": list(seeds),
        "about": dict(about or {}),
        "differences": differences,
        "rows": rows,
    }
    write_json(folder / f"{name}.json", result)
    write(folder / f"{name}.svg", picture(result).encode())
    write(folder / f"{name}.md", page(result).encode())
    return result


def _finished(run: Path, config: RunConfig) -> bool:
    try:
        manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        message = f"{run / 'manifest.json'}: cannot be read ({error}); remove the run folder {run}"
        raise OutputError(message) from error
    return bool(manifest["run"] == run_id(config))


def _rows(name: str, split: str, record: Tree, config: RunConfig) -> list[Tree]:
    """One row per scorer and one per arm, in the words of the project's evidence tables."""
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
        "commit": _commit(),
    }
    unforeseen = left_out(config)
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
            "steps": result["steps"],
            "eval_loss": result["eval_loss"],
            "gap_recovered": _recovered(record["arms"], arm),
        }
        for arm, result in record["arms"].items()
    ]
    return rows


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


def _differences(records: Sequence[Tree]) -> Tree:
    """Arm minus curated over the items of all seeds, mean and 95 % interval; and seed by seed."""
    found: Tree = {}
    for arm in records[0]["arms"]:
        if arm == "curated" or not all(arm in record["arms"] for record in records):
            continue
        theirs = np.concatenate([record["arms"][arm]["losses"] for record in records])
        curated = np.concatenate([record["arms"]["curated"]["losses"] for record in records])
        mean, low, high = paired_bootstrap(theirs, curated, seed=0)
        by_seed = {str(record["seed"]): record["arm_differences"][arm] for record in records}
        found[arm] = {
            "mean": mean,
            "low": low,
            "high": high,
            "items": len(curated),
            "by_seed": by_seed,
        }
    return found


def _machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return (
        f"{device}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def _commit() -> str | None:
    """The checkout's commit, or None outside one."""
    folder = Path(__file__).parent
    done = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"],  # noqa: S607 - git from PATH, fixed words
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None
