"""A measuring pass at the held adapter: private samples and public rows, one reference for both."""

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
from fedwinnow.client.signals.shards import SHARD, Crew, measure_in_shards
from fedwinnow.client.signals.workers import MeasuringTask, WorkerModel, Workers
from fedwinnow.curation.config.strict_toml import canonical_json
from fedwinnow.curation.datatypes import PublicRows, Sample, SignalTable, Status
from fedwinnow.curation.model.lora_model import get_adapter

Measuring = Callable[[Sequence[Sample], str], SignalTable]
"""Measures samples; the words say to who watches whose they are."""


def signal_measurer(
    work: SiteRun,
    adapter: str,
    *,
    columns: frozenset[str],
    checkpoint: int,
    learning_rate: float = 0.0,
) -> Measuring:
    """What measures samples with the adapter that the model holds; ``adapter`` is its hash."""
    terms = work.terms
    key = ("references", str(checkpoint), *sorted(columns), *public_result_key(work, adapter))

    def arguments() -> dict[str, Any]:
        return {
            "columns": columns,
            "checkpoint": checkpoint,
            "references": work.workshop.public(key, lambda: _references(work, columns)),
            "contrast": work.pool.split.reference,
            "contrast_prompts": terms.measuring.contrast_prompts,
            "learning_rate": learning_rate,
            "backend": terms.measuring.backend,
        }

    def table(samples: Sequence[Sample], what: str) -> SignalTable:
        given, options = arguments(), work.pass_options
        return measure_in_shards(
            lambda shard, on_progress: measure(
                work.loaded, shard, options, **given, on_progress=on_progress
            ),
            samples,
            files=work.files,
            key=(what, adapter, str(checkpoint), *sorted(columns)),
            on_progress=work.workshop.on_progress(f"{what}, checkpoint {checkpoint}"),
            crew=_crew(work, given) if len(samples) > SHARD else None,
            size=SHARD,
        )

    return table


def _references(work: SiteRun, columns: frozenset[str]) -> References:
    """References at the adapter that the model holds, from the reference anchors."""
    terms, split = work.terms, work.pool.split
    spoiled = "representation_corrupted" in columns
    return reference_state(
        work.loaded,
        split.reference,
        work.pass_options,
        columns=columns,
        corrupted=corrupted_references(terms.anchors, split, terms.run.seed) if spoiled else (),
        way=reference_backend(terms.measuring.backend, work.loaded),
        layers=terms.measuring.layers,
    )


def _crew(work: SiteRun, arguments: Mapping[str, Any]) -> Crew | None:
    """The site's workers, with the adapter that the model holds; None where it has none.

    Workers keep no tokens: what they read of a sample never reaches their disks.
    """
    section, terms = work.config.compute, work.terms
    if section.workers == 1 and not section.ray:
        return None
    model = WorkerModel(
        section=work.model, adapter=terms.adapter, seed=terms.run.seed, threads=terms.run.threads
    )
    workers = work.workshop.kept(
        ("workers", canonical_json(section), repr(model)),
        lambda: Workers(section=section, model=model),
    )
    task = MeasuringTask(
        adapter=get_adapter(work.loaded),
        options=replace(work.pass_options, tokens=None),
        arguments=arguments,
    )
    return partial(workers.each, task)


def measure_public_rows(
    work: SiteRun,
    adapter: str,
    table: Measuring,
    *,
    columns: frozenset[str],
    checkpoint: int,
    guests: tuple[str, ...] = (),
) -> PublicRows:
    """The public calibration rows that can be measured; once in a process for each of guests."""
    key = ("rows", str(checkpoint), *sorted(columns), *public_result_key(work, adapter), *guests)
    public = work.workshop.public(
        key, lambda: table(work.pool.rows.samples, "measuring public anchors")
    )
    keep, rows = np.flatnonzero(public.status == Status.OK), work.pool.rows
    return PublicRows(
        trajectory=(take_rows(public, keep.tolist()),),
        kinds=tuple(rows.kinds[i] for i in keep),
        parents=tuple(rows.parents[i] for i in keep),
    )
