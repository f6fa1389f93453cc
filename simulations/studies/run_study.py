"""Run a study over several seeds, with its arms and comparison scorers, and write its evidence.

It writes NAME.json (one row per seed and scorer or arm), NAME.md (tables with mean and range) and
NAME.svg. Evaluation losses are compared item by item on the public hold-out of every seed: the
paired bootstrap resamples the items of all seeds together.
"""

import json
import logging
import platform
import subprocess
from pathlib import Path

import torch

from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.curation.atomic_files import write_atomically, write_json
from fedwinnow.curation.config.identity import run_id
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.errors import OutputError
from fedwinnow.server.report.record import RunRecord, read_record
from fedwinnow.server.run.driver import Progress
from fedwinnow.simulations.runtimes.in_process import simulate
from fedwinnow.simulations.studies.definitions import Plan
from fedwinnow.simulations.studies.evidence import (
    arm_differences,
    difference_of_splits,
    evidence_rows,
    recovered_share,
    with_reference_arms,
)
from fedwinnow.simulations.studies.page import study_page
from fedwinnow.simulations.studies.picture import study_picture
from fedwinnow.simulations.studies.result import ArmRow, ScorerRow, StudyResult

logger = logging.getLogger(__name__)

_RAN_AT = "commit.json"
"""File beside a run's record with the commit of the code that ran; the page's may be newer."""


def run_study(
    plan: Plan,
    *,
    folder: Path,
    command: str,
    progress: Progress | None = None,
    cache: ProcessCache | None = None,
) -> StudyResult:
    """Run every split of a scenario for every seed and write the evidence files.

    A seed whose run folder already holds a finished run of the same settings is not run again.

    Args:
        plan: Title, seeds and splits.
        folder: Where NAME.json, NAME.md and NAME.svg go.
        command: The command line, for the page.
        progress: Called on every delivery.
        cache: Process cache with the loaded model, or None.

    Raises:
        CurationError: whatever stops a run.
    """
    rows: list[ScorerRow | ArmRow] = []
    told: dict[str, list[RunRecord]] = {}
    shared = cache or ProcessCache()
    for split, configure in plan.splits.items():
        records: list[RunRecord] = []
        for seed in plan.seeds:
            config = configure(seed)
            run = Path(config.run.output) / config.run.name
            if not is_finished(run, config):
                simulate(config, resume=True, progress=progress, command=command, cache=shared)
                write_json(run / _RAN_AT, {"commit": commit()})
            record = read_record(run / "record.json")
            first = next(iter(told.values()))[len(records)] if plan.compare and told else None
            rows += evidence_rows(plan.title, split, record, config, _ran_at(run), first)
            records.append(with_reference_arms(record, first))
            logger.info("study %s, split %s: seed %d done", plan.title, split, seed)
        told[split] = records
    result = StudyResult(
        study=plan.title,
        command=command,
        machine=machine(),
        commit=commit(),
        seeds=plan.seeds,
        about=dict(plan.about),
        differences={split: arm_differences(records) for split, records in told.items()},
        recovered={split: recovered_share(records) for split, records in told.items()},
        compared=difference_of_splits(told) if plan.compare else {},
        rows=tuple(rows),
    )
    write_json(folder / f"{plan.title}.json", result.to_json())
    write_atomically(folder / f"{plan.title}.svg", study_picture(result).encode())
    write_atomically(folder / f"{plan.title}.md", study_page(result).encode())
    return result


def is_finished(run: Path, config: RunConfig) -> bool:
    """Return whether a folder holds a finished run of exactly these settings and data.

    Raises:
        OutputError: its manifest cannot be read.
    """
    try:
        manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        message = f"{run / 'manifest.json'}: cannot be read ({error}); remove the run folder {run}"
        raise OutputError(message) from error
    return bool(manifest["run"] == run_id(config))


def _ran_at(run: Path) -> str | None:
    path = run / _RAN_AT
    return json.loads(path.read_text(encoding="utf-8"))["commit"] if path.exists() else None


def machine() -> str:
    """Return device, threads and versions, for a page."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    threads = torch.get_num_threads()
    return (
        f"{device}, {threads} thread{'s' * (threads != 1)}, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def commit() -> str | None:
    """Return the commit of the checkout, or None outside a checkout."""
    folder = Path(__file__).parent
    done = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"],  # noqa: S607 - git from PATH, fixed words
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None
