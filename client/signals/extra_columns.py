"""Join signal columns from other models (teacher, reviewers) to a signal table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float32

from fedwinnow.client.signals.collect import Measuring
from fedwinnow.curation.datatypes import Sample, SignalTable, Status

Columns = Mapping[str, Float32[np.ndarray, " samples"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraColumns:
    """Signal columns of other models (teacher, reviewers) at one checkpoint."""

    private: Columns = field(default_factory=dict)
    """Columns of the silo's samples, in their order."""
    public: Columns = field(default_factory=dict)
    """Columns of all public calibration rows, in their order."""
    key: tuple[str, ...] = ()
    """What the public columns depend on besides the adapter, anchors, terms and model."""


def with_extra_columns(measure: Measuring, columns: Columns) -> Measuring:
    """Return a function that measures samples and joins columns of the same samples, in order."""
    if not columns:
        return measure

    def both(samples: Sequence[Sample], what: str) -> SignalTable:
        return join_columns(measure(samples, what), columns)

    return both


def join_columns(table: SignalTable, columns: Columns) -> SignalTable:
    """Join further columns to a table; a row where one of them is not finite has no signals."""
    status = table.status.copy()
    for values in columns.values():
        status[(status == Status.OK) & ~np.isfinite(values)] = Status.NON_FINITE
    every = {**table.columns, **columns}
    found = {name: every[name].astype(np.float32, copy=True) for name in sorted(every)}
    for values in found.values():
        values[status != Status.OK] = np.nan
    return replace(table, status=status, columns=found)
