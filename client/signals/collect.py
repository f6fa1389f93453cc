"""Measure private samples and public rows at the loaded adapter, against one set of references."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fedwinnow.client.data.anchors import corrupted_references
from fedwinnow.client.measuring.backends import reference_backend
from fedwinnow.client.measuring.measuring_pass import measure
from fedwinnow.client.measuring.references import References, reference_state
from fedwinnow.client.runs.site_run import SiteRun, public_result_key, take_rows
from fedwinnow.client.signals.shards import SHARD, ShardMeasurer, measure_in_shards
from fedwinnow.client.signals.workers import MeasuringTask, WorkerModel, Workers
from fedwinnow.curation.config.strict_toml import canonical_json
from fedwinnow.curation.datatypes import PublicRows, Sample, SignalTable, Status
from fedwinnow.curation.model.lora_model import get_adapter

Measuring = Callable[[Sequence[Sample], str], SignalTable]
"""Measures samples; the text names them in progress reports."""


def signal_measurer(
    run: SiteRun,
    adapter: str,
    *,
    columns: frozenset[str],
    checkpoint: int,
    learning_rate: float = 0.0,
) -> Measuring:
    """Return a function that measures samples at the loaded adapter; ``adapter`` is its hash."""
    terms = run.terms
    key = ("references", str(checkpoint), *sorted(columns), *public_result_key(run, adapter))

    def arguments() -> dict[str, Any]:
        return {
            "columns": columns,
            "checkpoint": checkpoint,
            "references": run.cache.cached_public(key, lambda: _references(run, columns)),
            "contrast": run.data.split.reference,
            "contrast_prompts": terms.measuring.contrast_prompts,
            "learning_rate": learning_rate,
            "backend": terms.measuring.backend,
        }

    def table(samples: Sequence[Sample], what: str) -> SignalTable:
        given, options = arguments(), run.pass_options
        return measure_in_shards(
            lambda shard, on_progress: measure(
                run.loaded, shard, options, **given, on_progress=on_progress
            ),
            samples,
            files=run.files,
            key=(what, adapter, str(checkpoint), *sorted(columns)),
            on_progress=run.cache.on_progress(f"{what}, checkpoint {checkpoint}"),
            workers=_shard_workers(run, given) if len(samples) > SHARD else None,
            size=SHARD,
        )

    return table


def _references(run: SiteRun, columns: frozenset[str]) -> References:
    """Compute references at the loaded adapter from the reference anchors."""
    terms, split = run.terms, run.data.split
    spoiled = "representation_corrupted" in columns
    return reference_state(
        run.loaded,
        split.reference,
        run.pass_options,
        columns=columns,
        corrupted=corrupted_references(terms.anchors, split, terms.run.seed) if spoiled else (),
        way=reference_backend(terms.measuring.backend, run.loaded),
        layers=terms.measuring.layers,
    )


def _shard_workers(run: SiteRun, arguments: Mapping[str, Any]) -> ShardMeasurer | None:
    """Return the site's workers, with the loaded adapter; None where it has none.

    Workers keep no tokens: what they read of a sample never reaches their disks.
    """
    section, terms = run.config.compute, run.terms
    if section.workers == 1 and not section.ray:
        return None
    model = WorkerModel(
        section=run.model, adapter=terms.adapter, seed=terms.run.seed, threads=terms.run.threads
    )
    workers = run.cache.keep(
        ("workers", canonical_json(section), repr(model)),
        lambda: Workers(section=section, model=model),
    )
    task = MeasuringTask(
        adapter=get_adapter(run.loaded),
        options=replace(run.pass_options, tokens=None),
        arguments=arguments,
    )
    return partial(workers.each, task)


def measure_public_rows(
    run: SiteRun,
    adapter: str,
    table: Measuring,
    *,
    columns: frozenset[str],
    checkpoint: int,
    extra_key: tuple[str, ...] = (),
) -> PublicRows:
    """Return the measurable public rows; cached in the process, ``extra_key`` ends the key."""
    key = ("rows", str(checkpoint), *sorted(columns), *public_result_key(run, adapter), *extra_key)
    public = run.cache.cached_public(
        key, lambda: table(run.data.rows.samples, "measuring public anchors")
    )
    keep, rows = np.flatnonzero(public.status == Status.OK), run.data.rows
    return PublicRows(
        trajectory=(take_rows(public, keep.tolist()),),
        kinds=tuple(rows.kinds[i] for i in keep),
        parents=tuple(rows.parents[i] for i in keep),
    )
