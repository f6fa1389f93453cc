"""Write chosen rows of a data source as they came: every column, value and type, in order.

A row of a JSON file is written as its own text, a CSV row as the texts of its fields, and a row of
an Arrow table as the values of its types. An Arrow table as ``.jsonl`` has dates, times and
decimals as texts, dictionaries as their values and maps of texts as objects; what JSON does not
hold (bytes, durations, NaN) is an error. Each source is written in the formats that hold its rows
without loss.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from fedwinnow.client.data_files.arrow_rows import parquet_schema, plain_type
from fedwinnow.client.data_files.readers import batch_streams, read_rows
from fedwinnow.client.data_files.rows import Row
from fedwinnow.client.data_files.sources import DataSource, Kind, ending_of
from fedwinnow.curation.errors import DataError, OutputError

ENDINGS: dict[Kind, tuple[str, ...]] = {
    "json": (".jsonl",),
    "csv": (".csv", ".tsv", ".jsonl", ".parquet"),
    "arrow": (".parquet", ".jsonl"),
}
"""Kind of a source's rows → endings of files that hold them without loss."""
_BATCH = 1000


def check_kept(source: DataSource, target: Path) -> None:
    """Refuse, before anything is computed, a file that could not hold the rows of a source.

    Raises:
        OutputError: the file's ending is unknown, or holds no rows of this kind.
        DataError: a value has no form there, or shards differ; names file, row and column.
    """
    ending = ending_of(target)
    if ending not in ENDINGS[source.kind]:
        message = (
            f"--kept {target}: rows of {source.name} are written unchanged as "
            f"{' or '.join(ENDINGS[source.kind])}, not as {ending or 'a file without ending'!r}; "
            "choose another ending"
        )
        raise OutputError(message)
    if ending == ".jsonl":
        if source.kind == "arrow" and not _fits_json(source):
            for row in read_rows(source):
                _json_line(row)
    elif source.kind == "arrow":
        _check_schemas(source)
    else:
        _check_headers(source)


def write_kept(source: DataSource, chosen: Sequence[bool], file: Path, ending: str) -> None:
    """Write the chosen rows of a source to a file of the format that ``ending`` names.

    Raises:
        DataError: the source is broken or has changed since its rows were chosen.
        OutputError: the file cannot be written.
    """
    if ending == ".parquet":
        _write_parquet(source, chosen, file)
        return
    with file.open("w", encoding="utf-8", newline="") as out:
        separator = "\t" if ending == ".tsv" else ","
        table = csv.writer(out, delimiter=separator, lineterminator="\r\n")
        if ending != ".jsonl":
            with closing(read_rows(source)) as rows:
                table.writerow(next(rows).values)
        for row in _chosen(source, chosen):
            if ending == ".jsonl":
                out.write(_json_line(row) + "\n")
            else:
                table.writerow(row.values.values())


def _chosen(source: DataSource, chosen: Sequence[bool]) -> Iterator[Row]:
    """Yield the chosen rows; refuse a source that holds another number of rows than before."""
    number = -1
    with closing(read_rows(source)) as rows:
        for number, row in enumerate(rows):
            if number < len(chosen) and chosen[number]:
                yield row
    if number + 1 != len(chosen):
        raise _changed(source, len(chosen), number + 1)


def _json_line(row: Row) -> str:
    """Return a row as strict JSON on one line; its own text where it was JSON.

    Raises:
        DataError: a value has no form in JSON; names row and column.
    """
    if row.text:
        return row.text
    try:
        return json.dumps(row.values, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        for name, value in row.values.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError):
                what = "NaN or infinity" if isinstance(error, ValueError) else type(value).__name__
                message = (
                    f"{row.place}, {name}: {what} has no form in JSON; end the name of --kept with "
                    ".parquet"
                )
                raise DataError(message) from error
        raise


def _write_parquet(source: DataSource, chosen: Sequence[bool], file: Path) -> None:
    batches = _text_batches(source) if source.kind == "csv" else _arrow_batches(source)
    writer, number = None, 0
    try:
        for batch in batches:
            mask = list(chosen[number : number + batch.num_rows])
            number += batch.num_rows
            if len(mask) < batch.num_rows:
                continue
            if writer is None:
                writer = pq.ParquetWriter(file, batch.schema)
            runs = [batch.slice(start, length) for start, length in _runs(mask)]
            if runs:
                writer.write_table(pa.Table.from_batches(runs))
    finally:
        if writer is not None:
            writer.close()
    if number != len(chosen):
        raise _changed(source, len(chosen), number)


def _runs(mask: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Yield start and length of each run of chosen rows: slices keep types that filters lack."""
    start = 0
    for keep, run in groupby(mask):
        length = len(list(run))
        if keep:
            yield start, length
        start += length


def _arrow_batches(source: DataSource) -> Iterator[Any]:
    for _, batches in batch_streams(source):
        yield from batches


def _text_batches(source: DataSource) -> Iterator[Any]:
    """Yield the rows of a CSV source as batches of texts."""
    rows: list[Row] = []
    with closing(read_rows(source)) as stream:
        for row in stream:
            rows.append(row)
            if len(rows) == _BATCH:
                yield _text_batch(rows)
                rows = []
    if rows:
        yield _text_batch(rows)


def _text_batch(rows: Sequence[Row]) -> Any:  # noqa: ANN401 - pyarrow is not typed
    names = list(rows[0].values)
    columns = [pa.array([row.values[name] for row in rows], pa.large_string()) for name in names]
    return pa.RecordBatch.from_arrays(columns, names=names)


def _check_schemas(source: DataSource) -> None:
    """Refuse shards of other columns or types than the first, and types that Parquet lacks."""
    schemas = [(file, parquet_schema(file)) for file in source.files]
    for file, schema in schemas[1:]:
        if not schema.equals(schemas[0][1]):
            message = (
                f"{file}: has other columns or types than {schemas[0][0].name}, so one Parquet "
                "file cannot hold both; end the name of --kept with .jsonl"
            )
            raise DataError(message)
    if not schemas:
        batch = next(_arrow_batches(source), None)
        if batch is not None:
            try:
                pq.write_table(pa.Table.from_batches([], schema=batch.schema), io.BytesIO())
            except pa.ArrowException as error:
                message = f"{source.name}: Parquet cannot hold its types ({error}); use .jsonl"
                raise DataError(message) from error


def _check_headers(source: DataSource) -> None:
    """Refuse CSV shards of other columns than the first."""
    first: tuple[str, list[str]] | None = None
    for file in source.files:
        one = DataSource(name=str(file), kind=source.kind, files=(file,))
        with closing(read_rows(one)) as rows:
            row = next(rows, None)
        if row is None:
            continue
        names = list(row.values)
        first = first or (file.name, names)
        if names != first[1]:
            message = (
                f"{file}: has other columns than {first[0]}, so one table cannot hold both; end "
                "the name of --kept with .jsonl"
            )
            raise DataError(message)


def _fits_json(source: DataSource) -> bool:
    """Return whether the types of every file tell that JSON holds each value."""
    schemas = [parquet_schema(file) for file in source.files]
    return bool(schemas) and all(
        _never_fails(plain_type(field.type)) for schema in schemas for field in schema
    )


def _never_fails(kind: Any) -> bool:  # noqa: ANN401 - pyarrow is not typed
    tests = (types.is_string, types.is_large_string, types.is_integer, types.is_boolean)
    if any(test(kind) for test in tests) or types.is_null(kind):
        return True
    nested = types.is_struct(kind) or types.is_list(kind) or types.is_large_list(kind)
    return nested and all(_never_fails(kind.field(i).type) for i in range(kind.num_fields))


def _changed(source: DataSource, expected: int, got: int) -> DataError:
    return DataError(
        f"{source.name}: held {expected} rows when they were scored and holds {got} now; score it "
        "again and leave it unchanged meanwhile"
    )
