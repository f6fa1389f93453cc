"""A measuring pass at the held adapter: private samples and public rows, one reference for both."""

from collections.abc import Callable, Sequence

import numpy as np

from fedwinnow.client.anchors import calibration_rows
from fedwinnow.client.measuring import measure
from fedwinnow.client.references import References, reference_state
from fedwinnow.client.work import Work, public_key, rows_of
from fedwinnow.curation.nouns import PublicRows, Sample, SignalTable, Status
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

    def references() -> References:
        return reference_state(
            work.loaded,
            work.pool.split.reference,
            columns=columns,
            max_length=terms.model.max_length,
            system_prompt=terms.model.system_prompt,
            batch_tokens=terms.measuring.batch_tokens,
            corrupted=corrupted_references(work) if "representation_corrupted" in columns else (),
        )

    def table(samples: Sequence[Sample], what: str) -> SignalTable:
        return measure(
            work.loaded,
            samples,
            columns=columns,
            checkpoint=checkpoint,
            references=work.workshop.public(key, references),
            contrast=work.pool.split.reference,
            contrast_prompts=terms.measuring.contrast_prompts,
            batch_tokens=terms.measuring.batch_tokens,
            max_length=terms.model.max_length,
            system_prompt=terms.model.system_prompt,
            learning_rate=learning_rate,
            progress=work.workshop.watch(f"{what}, checkpoint {checkpoint}"),
        )

    return table


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
