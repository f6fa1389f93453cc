"""Run the attacks and collect their figures; a finished run is not run again."""

import hashlib
import inspect
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedwinnow.client.data.anchors import split_scenario_anchors
from fedwinnow.client.measuring.evaluation import evaluate
from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.curation.adapters.peft_folder import load_adapter
from fedwinnow.curation.atomic_files import write_atomically, write_json
from fedwinnow.curation.config.identity import run_id
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import to_plain
from fedwinnow.curation.config.typed_json import parse_tree
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ConfigError
from fedwinnow.curation.model.lora_model import set_adapter
from fedwinnow.curation.model.pretrained import generate, load_model
from fedwinnow.server.report.record import RunRecord, read_record
from fedwinnow.server.run.driver import Progress
from fedwinnow.simulations.attacks import catalogue, liar
from fedwinnow.simulations.attacks.attacked_federation import (
    HONEST,
    LIAR,
    Case,
    attack_cases,
    configure_case,
    describe_case,
    wrap_last_site,
)
from fedwinnow.simulations.attacks.catalogue import ANSWER, ATTACKS, plant_backdoor
from fedwinnow.simulations.attacks.page import attack_page, compare_attacks
from fedwinnow.simulations.attacks.result import (
    AttackResult,
    AttackRow,
    BoundedRound,
    CaseFigures,
    TriggerFigures,
)
from fedwinnow.simulations.runtimes.in_process import simulate
from fedwinnow.simulations.studies.run_study import commit, is_finished, machine

logger = logging.getLogger(__name__)

_PROMPTS = 24
"""Number of prompts with the trigger."""
_TOKENS = 12
_RESULT_FILE = "attack.json"
"""File beside a run's record: digest of its lies, commit of the code that ran, trigger figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _CaseResult:
    """Content of ``attack.json``; all empty without such a file."""

    run: str = ""
    """Run id."""
    lies: str = ""
    commit: str | None = None
    trigger: TriggerFigures | None = None
    """None until the finished run's adapter is evaluated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Attacks, seeds and settings of ``fedwinnow attacks``."""

    attacks: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = sorted(set(self.attacks) - set(ATTACKS))
        if unknown or not self.attacks:
            message = f"--attack: expected some of {', '.join(ATTACKS)}, got {', '.join(unknown)}"
            raise ConfigError(message)


def run_attacks(
    plan: Plan, *, folder: Path, command: str, progress: Progress | None = None
) -> AttackResult:
    """Run every case and write ``attacks.json`` and ``attacks.md``.

    Args:
        plan: Attacks and seeds.
        folder: Where the two files go.
        command: The command line, for the page.
        progress: Called on every delivery.

    Raises:
        CurationError: whatever stops a run.
    """
    shared, rows = ProcessCache(), []
    for seed in plan.seeds:
        for case in attack_cases(plan.attacks, seed):
            rows.append(_case(case, plan.settings, command, progress, shared))
            logger.info("attacks: %s done", case.name)
    result = AttackResult(
        command=command,
        machine=machine(),
        commit=commit(),
        seeds=plan.seeds,
        bed=rows[0].bed,
        attacks={name: ATTACKS[name].about for name in plan.attacks},
        table=tuple(compare_attacks(rows)),
        rows=tuple(rows),
    )
    write_json(folder / "attacks.json", result.to_json())
    write_atomically(folder / "attacks.md", attack_page(result).encode())
    return result


def _case(
    case: Case,
    settings: Sequence[str],
    command: str,
    progress: Progress | None,
    cache: ProcessCache,
) -> AttackRow:
    config = configure_case(case, settings)
    run = Path(config.run.output) / config.run.name
    result, ours, lies = _read_case_result(run), run_id(config), _lies(case)
    if (result.run, result.lies) != (ours, lies):
        shutil.rmtree(run, ignore_errors=True)  # other settings, or other lies under the same ones
        result = _CaseResult(run=ours, lies=lies, commit=commit())
        write_json(run / _RESULT_FILE, to_plain(result))
    if not is_finished(run, config):
        simulate(
            config,
            resume=True,
            progress=progress,
            command=command,
            cache=cache,
            wrap=wrap_last_site(case),
        )
    trigger = result.trigger
    if trigger is None:
        trigger = trigger_figures(config, run / "adapter")
        write_json(run / _RESULT_FILE, to_plain(replace(result, trigger=trigger)))
    return AttackRow(
        case=case,
        figures=figures(read_record(run / "record.json")),
        trigger=trigger,
        commit=result.commit,
        bed=describe_case(config),
    )


def figures(record: RunRecord) -> CaseFigures:
    """Return the figures of the honest sites and of the liar from a run's record."""
    arm = record.arms["curated"]
    sizes = {site.site: site.samples for site in record.sites}
    kept = sum(arm.kept_by_site.get(site, 0) for site in HONEST)
    bounded: dict[str, tuple[BoundedRound, ...]] = {}
    for one in arm.rounds:
        for site, why in one.bounded.items():
            found = BoundedRound(round=one.round, why=why)
            bounded[site] = (*bounded.get(site, ()), found)
    missing: dict[str, str] = {}
    for phase in record.phases:
        for site, why in phase.missing.items():
            missing.setdefault(site, f"{phase.phase}: {why}")
    return CaseFigures(
        losses=arm.losses,
        kept=kept / sum(sizes[site] for site in HONEST if site in sizes),
        weight=float(np.mean([one.weights.get(LIAR, 0.0) for one in arm.rounds])),
        bounded=bounded,
        missing=missing,
    )


def trigger_figures(config: RunConfig, adapter: Path) -> TriggerFigures:
    """Measure an adapter's answers to public hold-out prompts behind the trigger."""
    split = split_scenario_anchors(config.anchors, config.run.seed)
    asked: list[Sample] = plant_backdoor(split.holdout[:_PROMPTS])
    loaded = load_model(config.model, config.adapter, seed=config.run.seed)
    set_adapter(loaded, load_adapter(adapter, base=loaded.fingerprint))
    options = PassOptions(
        batch_tokens=config.measuring.batch_tokens, max_length=config.model.max_length
    )
    losses = evaluate(loaded, asked, options)
    answers = generate(loaded, asked, max_new_tokens=_TOKENS)
    hits = [answer == ANSWER for answer in answers]
    return TriggerFigures(loss=float(losses.mean()), share=float(np.mean(hits)))


def _lies(case: Case) -> str:
    """Return a digest of the code of the lies; "" for an honest run."""
    if not case.attack:
        return ""
    text = "".join(inspect.getsource(module) for module in (catalogue, liar))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read_case_result(run: Path) -> _CaseResult:
    path = run / _RESULT_FILE
    tree = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return parse_tree(tree, _CaseResult)
