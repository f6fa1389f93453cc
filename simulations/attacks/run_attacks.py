"""Runs the cases of the zoo and takes their figures; a finished run is not run again."""

import hashlib
import inspect
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedwinnow.client.data.anchors import split_of
from fedwinnow.client.measuring.evaluation import evaluate
from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.client.runs.process_cache import Workshop
from fedwinnow.curation.adapters.peft_folder import load_adapter
from fedwinnow.curation.atomic_files import write, write_json
from fedwinnow.curation.config.identity import run_id
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ConfigError
from fedwinnow.curation.model.pretrained import generate, load_model, set_adapter
from fedwinnow.server.run.driver import Progress
from fedwinnow.simulations.attacks import catalogue, liar
from fedwinnow.simulations.attacks.attacked_federation import (
    HONEST,
    LIAR,
    Case,
    about,
    cases,
    configure,
    doors,
)
from fedwinnow.simulations.attacks.catalogue import ANSWER, ATTACKS, planted
from fedwinnow.simulations.attacks.page import compare, page
from fedwinnow.simulations.runtimes.in_process import simulate
from fedwinnow.simulations.studies.run_study import commit, finished, machine

logger = logging.getLogger(__name__)

Tree = dict[str, Any]
_PROMPTS = 24
"""Prompts with the trigger that are answered."""
_TOKENS = 12
_BESIDE = "attack.json"
"""Beside a run's record: which lies it heard, the commit of the code that ran, trigger figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What ``fedwinnow attacks`` runs."""

    attacks: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = sorted(set(self.attacks) - set(ATTACKS))
        if unknown or not self.attacks:
            message = f"--attack: expected some of {', '.join(ATTACKS)}, got {', '.join(unknown)}"
            raise ConfigError(message)


def attacks(plan: Plan, *, folder: Path, command: str, progress: Progress | None = None) -> Tree:
    """Run every case and write ``attacks.json`` and ``attacks.md``.

    Args:
        plan: Attacks and seeds.
        folder: Where the two files go.
        command: The command line, for the page.
        progress: Told of every delivery.

    Raises:
        CurationError: whatever stops a run.
    """
    shared, rows = Workshop(), []
    for seed in plan.seeds:
        for case in cases(plan.attacks, seed):
            rows.append(_case(case, plan.settings, command, progress, shared))
            logger.info("attacks: %s done", case.name)
    result = {
        "command": command,
        "machine": machine(),
        "commit": commit(),
        "seeds": list(plan.seeds),
        "bed": rows[0]["bed"],
        "attacks": {name: ATTACKS[name].about for name in plan.attacks},
        "table": compare(rows),
        "rows": rows,
    }
    write_json(folder / "attacks.json", result)
    write(folder / "attacks.md", page(result).encode())
    return result


def _case(
    case: Case,
    settings: Sequence[str],
    command: str,
    progress: Progress | None,
    workshop: Workshop,
) -> Tree:
    config = configure(case, settings)
    run = Path(config.run.output) / config.run.name
    same = {"run": run_id(config), "lies": _lies(case)}
    beside = _beside(run)
    if {key: beside.get(key) for key in same} != same:
        shutil.rmtree(run, ignore_errors=True)  # other settings, or other lies under the same ones
        beside = same | {"commit": commit()}
        write_json(run / _BESIDE, beside)
    if not finished(run, config):
        simulate(
            config,
            resume=True,
            progress=progress,
            command=command,
            workshop=workshop,
            doors=doors(case),
        )
    if "trigger" not in beside:
        beside["trigger"] = trigger_figures(config, run / "adapter")
        write_json(run / _BESIDE, beside)
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    known = {key: beside[key] for key in ("trigger", "commit")}
    return asdict(case) | figures(record) | known | {"bed": about(config)}


def figures(record: Tree) -> Tree:
    """What a run's record says of the honest sites and of the liar.

    Returns:
        ``losses`` of the public hold-out items, nats; ``kept``: honest sites' kept share;
        ``weight``: the liar's mean weight over the rounds; ``bounded``: site → what the guards did
        to it, round by round; ``missing``: site → where and why nothing of it counted.
    """
    arm = record["arms"]["curated"]
    sizes = {site["site"]: site["samples"] for site in record["sites"]}
    kept = sum(arm["kept_by_site"].get(site, 0) for site in HONEST)
    bounded: dict[str, list[Tree]] = {}
    for one in arm["rounds"]:
        for site, why in one["bounded"].items():
            bounded.setdefault(site, []).append({"round": one["round"], "why": why})
    missing: dict[str, str] = {}
    for phase in record["phases"]:
        for site, why in phase["missing"].items():
            missing.setdefault(site, f"{phase['phase']}: {why}")
    return {
        "losses": arm["losses"],
        "kept": kept / sum(sizes[site] for site in HONEST if site in sizes),
        "weight": float(np.mean([one["weights"].get(LIAR, 0.0) for one in arm["rounds"]])),
        "bounded": bounded,
        "missing": missing,
    }


def trigger_figures(config: RunConfig, adapter: Path) -> Tree:
    """How an adapter answers public hold-out prompts behind the trigger.

    Returns:
        ``loss``: mean loss of the planted answer, nats a token; ``share``: of prompts whose greedy
        answer is the planted one.
    """
    split = split_of(config.anchors, config.run.seed)
    asked: list[Sample] = planted(split.holdout[:_PROMPTS])
    loaded = load_model(config.model, config.adapter, seed=config.run.seed)
    set_adapter(loaded, load_adapter(adapter, base=loaded.fingerprint))
    options = PassOptions(
        batch_tokens=config.measuring.batch_tokens, max_length=config.model.max_length
    )
    losses = evaluate(loaded, asked, options)
    answers = generate(loaded, asked, max_new_tokens=_TOKENS)
    hits = [answer == ANSWER for answer in answers]
    return {"loss": float(losses.mean()), "share": float(np.mean(hits))}


def _lies(case: Case) -> str:
    """A digest of the code of the lies, "" for an honest run."""
    if not case.attack:
        return ""
    text = "".join(inspect.getsource(module) for module in (catalogue, liar))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _beside(run: Path) -> Tree:
    path = run / _BESIDE
    found: Tree = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found
