"""Read samples row by row, check them and keep them on disk; memory holds ids and domains.

Every row is read once, in order, and copied as Arrow into a private temporary folder, which is
memory-mapped and removed with the object. So a changed file is always read anew, no text of a silo
enters a shared cache, and no local file asks the network.
"""

import hashlib
import itertools
import json
import weakref
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import datasets
import pyarrow as pa

from fedwinnow.client.data.row_samples import RowReader
from fedwinnow.client.data_files.readers import read_rows
from fedwinnow.client.data_files.sources import find_source
from fedwinnow.curation.config.scoring import ColumnsSection
from fedwinnow.curation.datatypes import Sample, Turn
from fedwinnow.curation.errors import DataError, OutputError
from fedwinnow.curation.process_guard import scratch_folder
from fedwinnow.curation.tabular import counted

_BATCH = 1000
_TEXTS = pa.list_(pa.large_string())
_SCHEMA = pa.schema(
    [
        ("prompt", pa.large_string()),
        ("response", pa.large_string()),
        ("roles", _TEXTS),
        ("turns", _TEXTS),
        ("details", _TEXTS),
        ("earlier", pa.int64()),
        ("response_details", pa.large_string()),
        ("tools", pa.large_string()),
        ("labels", _TEXTS),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Samples(Sequence[Sample]):
    """Lazy sequence of samples; only ids and domains are in memory."""

    source: str
    ids: tuple[str, ...]
    domains: tuple[str, ...]
    rows: Sequence[int]
    """Row of each sample in the source, from 0: a range or an array, eight bytes each at most."""
    label_names: tuple[str, ...]
    """Names of the labels, in the table's order."""
    train_on: Literal["last", "all"]
    """Assistant turns that the loss covers."""
    _table: Any
    reading: str = ""
    """Files, split and columns that were read, in words."""
    notes: tuple[str, ...] = ()
    """What was not read and holds something, in words."""

    def __repr__(self) -> str:
        return f"Samples({counted(len(self.ids), 'sample')} of {self.source})"

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Samples": ...
    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        if isinstance(index, slice):
            return self.subset(range(*index.indices(len(self))))
        return self._sample(int(index), self._table[self.rows[int(index)]])

    def __iter__(self) -> Iterator[Sample]:
        for start in range(0, len(self), _BATCH):
            columns = self._table[list(self.rows[start : start + _BATCH])]
            for place, values in enumerate(zip(*columns.values(), strict=True), start=start):
                yield self._sample(place, dict(zip(columns, values, strict=True)))

    def subset(self, indices: Sequence[int]) -> "Samples":
        """Return the samples at some positions, in the given order, still lazy."""
        return Samples(
            source=self.source,
            ids=tuple(self.ids[i] for i in indices),
            domains=tuple(self.domains[i] for i in indices),
            rows=array("q", (self.rows[i] for i in indices)),
            label_names=self.label_names,
            train_on=self.train_on,
            _table=self._table,
            reading=self.reading,
            notes=self.notes,
        )

    def _sample(self, place: int, row: Mapping[str, Any]) -> Sample:
        turns = tuple(map(Turn, row["roles"], row["turns"], row["details"]))
        return Sample(
            id=self.ids[place],
            prompt=row["prompt"],
            response=row["response"],
            domain=self.domains[place],
            history=turns[: row["earlier"]],
            followup=turns[row["earlier"] :],
            response_details=row["response_details"],
            tools=row["tools"],
            train_on=self.train_on,
            labels=dict(zip(self.label_names, row["labels"], strict=True)),
        )


def open_samples(source: str, columns: ColumnsSection, *, domain: str = "") -> Samples:
    """Open a data source; every row is checked, none is kept in memory.

    Args:
        source: A file (JSON, JSONL, CSV, TSV or Parquet; text may be gzipped); a folder that holds
            such files of one kind (those of one split are read, by name) or was written by
            ``save_to_disk``; or a hub name. ``:split`` may follow a folder and a hub name.
        columns: Which column holds what.
        domain: Domain of samples whose own is empty.

    Raises:
        DataError: the source is missing, empty or broken; names file, line and column.
        OutputError: the temporary folder cannot be written.
    """
    found, reader = find_source(source), RowReader(source, columns, domain)
    with ExitStack() as cleaning:  # the folder is removed silently with the last of the samples
        folder = cleaning.enter_context(scratch_folder("arrow"))
        file = folder / "samples.arrow"
        with closing(read_rows(found)) as rows:
            ids, domains = _store(map(reader.sample, rows), file)
        if not ids:
            message = f"{source}: holds no sample; give a file with at least one row"
            raise DataError(message)
        reader.check_columns()
        table = datasets.Dataset.from_file(str(file))
        weakref.finalize(table, cleaning.pop_all().close)
    return Samples(
        source=source,
        ids=ids,
        domains=domains,
        rows=range(len(ids)),
        label_names=columns.labels,
        train_on=columns.train_on,
        _table=table,
        reading=f"{source}: {counted(len(ids), 'row')}{found.described}; {reader.described}",
        notes=(
            *(f"{source}: not read: {what}, beside the files that are" for what in found.left_out),
            *reader.notes(),
        ),
    )


def data_hash(samples: Samples) -> str:
    """Return the SHA-256 over the ids and domains, whatever their order."""
    pairs = sorted(zip(samples.ids, samples.domains, strict=True))
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _store(samples: Iterable[Sample], file: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write texts batch by batch; return the ids and the domains."""
    ids: list[str] = []
    domains: list[str] = []
    shared: dict[str, str] = {}  # one text object per domain, not one per row
    stream = iter(samples)
    try:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
            while batch := list(itertools.islice(stream, _BATCH)):
                writer.write_batch(_record(batch))
                ids += [sample.id for sample in batch]
                domains += [shared.setdefault(sample.domain, sample.domain) for sample in batch]
    except OSError as error:
        message = (
            f"{file}: the temporary copy cannot be written ({error}); "
            "free the disk or set TMPDIR to a folder with room"
        )
        raise OutputError(message) from error
    kept = tuple(ids)
    ids.clear()  # a silo may hold millions: free the list before the next tuple
    return kept, tuple(domains)


def _record(batch: Sequence[Sample]) -> Any:  # noqa: ANN401 - pyarrow is not typed
    others = [(*sample.history, *sample.followup) for sample in batch]
    return pa.RecordBatch.from_pydict(
        {
            "prompt": [sample.prompt for sample in batch],
            "response": [sample.response for sample in batch],
            "roles": [[turn.role for turn in turns] for turns in others],
            "turns": [[turn.content for turn in turns] for turns in others],
            "details": [[turn.details for turn in turns] for turns in others],
            "earlier": [len(sample.history) for sample in batch],
            "response_details": [sample.response_details for sample in batch],
            "tools": [sample.tools for sample in batch],
            "labels": [list(sample.labels.values()) for sample in batch],
        },
        schema=_SCHEMA,
    )
