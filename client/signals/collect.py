"""A measuring pass at the held adapter: private samples and public rows, one reference for both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fedwinnow.client.data.anchors import calibration_rows
from fedwinnow.client.measuring.backends import reference_way
from fedwinnow.client.measuring.measuring_pass import measure
from fedwinnow.client.measuring.references import References, reference_state
from fedwinnow.client.runs.site_run import Work, public_key, rows_of
from fedwinnow.client.signals.shards import SHARD, Crew, in_shards
from fedwinnow.client.signals.workers import Model, Task, Workers
from fedwinnow.curation.config.strict_toml import canonical
from fedwinnow.curation.datatypes import PublicRows, Sample, SignalTable, Status
from fedwinnow.curation.model.lora_model import get_adapter
from fedwinnow.curation.seeds import derive_seed

Measuring = Callable[[Sequence[Sample], str], SignalTable]
"""Measures samples; the words say to who watches whose they are."""


def measuring(
    work: Work,
    adapter: str,
    *,
    columns: frozenset[str],
    checkpoint: int,
    learning_rate: float = 0.0,
) -> Measuring:
    """What measures samples with the adapter that the model holds; ``adapter`` is its hash."""
    terms = work.terms
    key = ("references", str(checkpoint), *sorted(columns), *public_key(work, adapter))

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
        return in_shards(
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


def _references(work: Work, columns: frozenset[str]) -> References:
    """References at the adapter that the model holds, from the reference anchors."""
    terms = work.terms
    return reference_state(
        work.loaded,
        work.pool.split.reference,
        work.pass_options,
        columns=columns,
        corrupted=corrupted_references(work) if "representation_corrupted" in columns else (),
        way=reference_way(terms.measuring.backend, work.loaded),
        layers=terms.measuring.layers,
    )


def _crew(work: Work, arguments: Mapping[str, Any]) -> Crew | None:
    """The site's workers, with the adapter that the model holds; None where it has none.

    Workers keep no tokens: what they read of a sample never reaches their disks.
    """
    section, terms = work.config.compute, work.terms
    if section.workers == 1 and not section.ray:
        return None
    model = Model(
        section=work.model, adapter=terms.adapter, seed=terms.run.seed, threads=terms.run.threads
    )
    workers = work.workshop.kept(
        ("workers", canonical(section), repr(model)), lambda: Workers(section=section, model=model)
    )
    task = Task(
        adapter=get_adapter(work.loaded),
        options=replace(work.pass_options, tokens=None),
        arguments=arguments,
    )
    return partial(workers.each, task)


def public_rows(
    work: Work,
    adapter: str,
    table: Measuring,
    *,
    columns: frozenset[str],
    checkpoint: int,
    guests: tuple[str, ...] = (),
) -> PublicRows:
    """The public calibration rows that can be measured; once in a process for each of guests."""
    key = ("rows", str(checkpoint), *sorted(columns), *public_key(work, adapter), *guests)
    public = work.workshop.public(
        key, lambda: table(work.pool.rows.samples, "measuring public anchors")
    )
    keep, rows = np.flatnonzero(public.status == Status.OK), work.pool.rows
    return PublicRows(
        trajectory=(rows_of(public, keep.tolist()),),
        kinds=tuple(rows.kinds[i] for i in keep),
        parents=tuple(rows.parents[i] for i in keep),
    )


def corrupted_references(work: Work) -> tuple[Sample, ...]:
    """Corruptions of the reference anchors: no copy of a calibration row, so scores stay honest.

    Raises:
        DataError: a kind cannot be made from so few anchors.
    """
    anchors, seed = work.terms.anchors, derive_seed(work.terms.run.seed, "corrupted references")
    rows = calibration_rows(
        work.pool.split.reference, corruptions=anchors.corruptions, copies=anchors.copies, seed=seed
    )
    return tuple(s for s, kind in zip(rows.samples, rows.kinds, strict=True) if kind != "clean")
