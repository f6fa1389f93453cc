"""Read raw rows of a data source one by one, each with its place for error messages.

Nothing is guessed about types: texts come as they stand (no dates, no numbers).
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from fedwinnow.client.data_files.arrow_rows import (
    batch_rows,
    hub_batches,
    parquet_batches,
    saved_batches,
)
from fedwinnow.client.data_files.csv_rows import csv_rows
from fedwinnow.client.data_files.json_rows import json_rows, jsonl_rows
from fedwinnow.client.data_files.rows import Row
from fedwinnow.client.data_files.sources import DataSource, ending_of, find_source
from fedwinnow.curation.errors import DataError

_LOOK = 1000
"""Rows whose columns tell the columns of a source."""


def read_rows(source: str | DataSource) -> Generator[Row, None, None]:
    """Yield rows of a file, a folder or a hub data set; close it if not read to the end.

    Args:
        source: A file with an ending of ``sources.KINDS``; a folder that holds such files of one
            kind (those of one split are read, by name) or was written by ``save_to_disk``; or a hub
            name. ``:split`` may follow a folder or a hub name; it is ``train`` by default.

    Raises:
        DataError: the source is missing or broken; names the file, and the line where there is one.
    """
    found = find_source(source) if isinstance(source, str) else source
    if found.kind == "arrow":
        for place, batches in batch_streams(found):
            yield from batch_rows(place, batches)
        return
    for file in found.files:
        yield from _text_rows(file)


def batch_streams(source: DataSource) -> Iterator[tuple[str, Iterator[Any]]]:
    """Yield the name and the record batches of each file of a source of kind "arrow"."""
    if source.saved is not None:
        yield source.name, saved_batches(source.saved, source.split)
    elif not source.files:
        yield source.name, hub_batches(source.name.partition(":")[0], source.split, source.name)
    for file in source.files:
        yield str(file), parquet_batches(file)


def columns_of(source: str) -> tuple[str, ...]:
    """Return the names of a source's columns, from its first rows.

    Raises:
        DataError: the source is missing, empty or broken.
    """
    names: dict[str, None] = {}
    with closing(read_rows(source)) as rows:
        for row in islice(rows, _LOOK):
            names |= dict.fromkeys(row.values)
    if not names:
        message = f"{source}: holds no sample; give a file with at least one row"
        raise DataError(message)
    return tuple(names)


def _text_rows(file: Path) -> Iterator[Row]:
    ending = ending_of(file).removesuffix(".gz")
    if ending == ".jsonl":
        return jsonl_rows(file)
    if ending == ".json":
        return json_rows(file)
    return csv_rows(file, "\t" if ending == ".tsv" else ",")
