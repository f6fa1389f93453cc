"""Score and filter one silo's data against public anchors, without a federation.

Fold, site and scorer are those of a federation of one member that trains nothing afterwards, so
that a silo sees alone what it would contribute.
"""

import contextlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fedwinnow.client.data.column_guess import map_columns
from fedwinnow.client.data.gate import overlaps_anchors
from fedwinnow.client.data.samples import Samples, open_samples
from fedwinnow.client.data_files.kept_rows import check_kept, write_kept
from fedwinnow.client.data_files.sources import ending_of, find_source, local_path
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.client.runs.run_files import RunFiles, simulated_run_files
from fedwinnow.curation.atomic_files import replace_atomically
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import parse, to_plain, with_overrides
from fedwinnow.curation.errors import DataError, OutputError
from fedwinnow.curation.process_guard import scratch_folder
from fedwinnow.server.run.advice import selection_warnings
from fedwinnow.server.run.driver import Progress
from fedwinnow.server.state import required
from fedwinnow.simulations.datasets.demo_scenario import local_model
from fedwinnow.simulations.runtimes.in_process import run_phases
from fedwinnow.simulations.score_settings import score_settings

logger = logging.getLogger(__name__)

SHOWN = 5
"""Most overlapping samples that an error names."""
WARNINGS = "fedwinnow.warnings"
"""Key of the table's metadata with a JSON list of warnings about the selection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreResult:
    """Result of ``fedwinnow score``."""

    samples: int
    kept: int
    threshold: float | None
    forecast: dict[str, float]
    evidence: dict[str, float]
    warnings: tuple[str, ...] = ()
    """What speaks against the selection, and what to change."""


def score_config(
    data: Path, anchors: Path, model: str, *, overrides: Sequence[str] = ()
) -> RunConfig:
    """Return the configuration of one silo that scores alone.

    Column names are guessed as in ``fedwinnow init``, unless ``sites.0.columns.…`` overrides name
    prompt, response or chat; the anchors then have the same names, unless ``anchors.columns.…`` do.

    Raises:
        ConfigError: an override is wrong.
        DataError: a file is missing or its columns cannot be mapped.
    """
    named = _names_content("sites.0.columns.", overrides)
    apart = _names_content("anchors.columns.", overrides)
    base = score_settings(data, anchors, model)
    if not named:
        base["sites"][0]["columns"] = to_plain(map_columns(str(data)))
    if not named and not apart:
        base["anchors"]["columns"] = to_plain(map_columns(str(anchors)))
    config = parse(with_overrides(base, overrides), RunConfig)
    if named and not apart:
        mapped = config.sites[0].columns
        config = replace(config, anchors=replace(config.anchors, columns=mapped))
    return replace(config, model=local_model(config.model))


def _names_content(prefix: str, overrides: Sequence[str]) -> bool:
    """Return whether overrides name the columns of prompt, response or chat."""
    names = ("prompt", "prompt_template", "response", "messages")
    keys = {line.partition("=")[0].strip() for line in overrides}
    return any(f"{prefix}{name}" in keys for name in names)


def score_silo(
    config: RunConfig,
    out: Path,
    *,
    kept: Path | None = None,
    progress: Progress | None = None,
    cache: ProcessCache | None = None,
) -> ScoreResult:
    """Score the one site of a configuration and write a Parquet file.

    Args:
        config: A configuration with exactly one site; its training section is not used.
        out: Parquet of row (from 0), id, signals by checkpoint, scores, kept and reason, one row
            per sample of the data in the order of the file; warnings are in its metadata.
        kept: File for the kept rows as they came, in the format of its ending, or None; see
            ``client/data_files/kept_rows.py``.
        progress: Called on every delivery.
        cache: Process cache with the loaded model, or None.

    Raises:
        DataError: a file or line is at fault, samples overlap the anchors, or a value has no form
            in the file for the kept rows.
        OutputError: ``out`` cannot be written, or would replace the data or the anchors.
    """
    site = config.sites[0]
    _spare(
        {"the data": site.data, "the anchors": config.anchors.path}, {"--out": out, "--kept": kept}
    )
    if kept is not None:
        check_kept(find_source(site.data), kept)
    data = _open(config)
    with contextlib.ExitStack() as stack:
        targets = [
            stack.enter_context(replace_atomically(path))
            for path in (out, kept)
            if path is not None
        ]
        for target in targets:
            target.touch()  # an unwritable folder is found before anything is computed
        folder = str(stack.enter_context(scratch_folder("score")))
        alone = replace(
            config,
            run=replace(config.run, output=folder),
            training=replace(config.training, rounds=0),
        )
        state, _ = run_phases(alone, progress=progress, cache=cache)
        decision = required(state.decision, "decision")
        table = _gather(simulated_run_files(alone, site.name), data)
        chosen = table["kept"].to_pylist()
        warnings = selection_warnings(
            config.scorer.name, state.forecast, decision.evidence, kept_all=sum(chosen) == len(data)
        )
        told = json.dumps(warnings, ensure_ascii=False)
        pq.write_table(table.replace_schema_metadata({WARNINGS: told}), targets[0])
        if kept is not None:
            write_kept(find_source(site.data), chosen, targets[1], ending_of(kept))
    return ScoreResult(
        samples=len(data),
        kept=sum(chosen),
        threshold=decision.value if math.isfinite(decision.value) else None,
        forecast=dict(state.forecast),
        evidence=dict(decision.evidence),
        warnings=warnings,
    )


def _open(config: RunConfig) -> Samples:
    """Open the silo's data; say how they and the anchors were read, and refuse an overlap."""
    site = config.sites[0]
    data = open_samples(site.data, site.columns, domain=site.domain)
    anchors = open_samples(config.anchors.path, config.anchors.columns)
    logger.info("reads %s", data.reading)
    logger.info("reads anchors %s", anchors.reading)
    for note in anchors.notes:  # those of the data are told where the site opens them
        logger.warning("%s", note)
    _refuse_overlap(config, data, anchors)
    return data


def _refuse_overlap(config: RunConfig, data: Samples, anchors: Samples) -> None:
    """Refuse data that hold an anchor: its score would be that of a known clean sample."""
    site = config.sites[0]
    same = overlaps_anchors(data, anchors, site.gate.near_duplicates)
    if same:
        places = ", ".join(str(index + 1) for index in same[:SHOWN])
        message = (
            f"{site.data}: {len(same)} of {len(data)} samples equal or nearly equal an anchor of "
            f"{config.anchors.path} (samples {places}{' …' if len(same) > SHOWN else ''}); "
            "remove them from one of the two files"
        )
        raise DataError(message)


def _gather(files: RunFiles, data: Samples) -> pa.Table:
    """Gather signals, scores and selection, one row per sample; dropped ones have a reason."""
    found: dict[str, dict[str, Any]] = {}
    for checkpoint in files.measured_checkpoints():
        for row in pq.read_table(files.signals(checkpoint)).to_pylist():
            found.setdefault(row["id"], {}).update(
                {
                    f"{name}@{checkpoint}": value
                    for name, value in row.items()
                    if name not in {"id", "domain", "status"}
                }
            )
    for row in pq.read_table(files.scores).to_pylist():
        named = {key: value for key, value in row.items() if key not in {"id", "domain", "status"}}
        found[row["id"]] |= {"score": next(iter(named.values()))}
        found[row["id"]] |= {f"score.{name}": value for name, value in named.items()}
    for row in pq.read_table(files.selection).to_pylist():
        found[row["id"]] |= {"kept": row["kept"], "reason": row["reason"]}
    dropped = json.loads(files.gate.read_text(encoding="utf-8"))
    rows = []
    for place, (sample_id, domain) in enumerate(zip(data.ids, data.domains, strict=True)):
        why = dropped.get(str(place), "held out for evaluation")
        left_out = {"kept": False, "reason": why}
        passed = str(place) not in dropped and sample_id in found
        rows.append(
            {"row": place, "id": sample_id, "domain": domain}
            | (found[sample_id] if passed else left_out)
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _spare(sources: Mapping[str, str], targets: Mapping[str, Path | None]) -> None:
    """Refuse to overwrite an input, or to write two results into one file."""
    taken = {local_path(source).resolve(): what for what, source in sources.items()}
    for option, target in targets.items():
        if target is None:
            continue
        for place, name in taken.items():
            if place.is_dir() and place in target.resolve().parents:
                message = f"{option} {target}: lies in the folder of {name}; choose another folder"
                raise OutputError(message)
        if (what := taken.get(target.resolve())) is not None:
            message = f"{option} {target}: {what} would be overwritten; choose another file"
            raise OutputError(message)
        taken[target.resolve()] = f"the file of {option}"
