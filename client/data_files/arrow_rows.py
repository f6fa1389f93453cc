"""Read Parquet files, saved data sets and hub data sets as batches, and batches as plain rows.

A row holds what JSON can hold where there is such a form without loss: dates, times and decimals
become Arrow's own texts, a dictionary its values, a map of texts an object. Other values (bytes,
durations) stay as they are. No local file leaves a copy in the shared cache of ``datasets``, and
none goes through its ``load_dataset``, which reports every call to a server of its makers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from fedwinnow.client.data_files.rows import Row
from fedwinnow.curation.errors import DataError

_MOST_ROWS = 1000
_BATCH_BYTES = 16 * 2**20
"""Bytes that a batch is cut to, so that rows with pictures or long texts do not fill the memory."""


def parquet_batches(path: Path) -> Iterator[Any]:
    """Yield the record batches of a Parquet file.

    Raises:
        DataError: the file is broken, or two columns have one name.
    """
    with _named(str(path)), pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):  # nested dictionaries do not cross groups
            facts = file.metadata.row_group(group)
            size = _batch_rows(facts.total_byte_size, facts.num_rows)
            batches = file.iter_batches(batch_size=size, row_groups=[group])
            yield from _checked(str(path), batches)


def saved_batches(folder: Path, split: str) -> Iterator[Any]:
    """Yield the record batches of what ``save_to_disk`` wrote.

    Raises:
        DataError: the folder is broken, or has no such split.
    """
    with _named(str(folder)), _quiet():
        saved = datasets.load_from_disk(str(folder))
        if isinstance(saved, Mapping):
            if (split or "train") not in saved:
                message = (
                    f"{folder}: no split {split or 'train'!r}, only {', '.join(saved)}; name one "
                    f"as {folder}:{next(iter(saved))}"
                )
                raise DataError(message)
            saved = saved[split or "train"]
        yield from _checked(str(folder), _batches(saved))


def hub_batches(name: str, split: str, source: str) -> Iterator[Any]:
    """Yield the record batches of a data set of the hub.

    Raises:
        DataError: the hub cannot be reached, or holds no such data set.
    """
    with _named(source), _quiet():
        found = datasets.load_dataset(name, split=split or "train")
        yield from _checked(source, _batches(found))


def parquet_schema(path: Path) -> Any:  # noqa: ANN401 - pyarrow is not typed
    """Return the Arrow schema of a Parquet file.

    Raises:
        DataError: the file is broken.
    """
    with _named(str(path)):
        return pq.read_schema(path)


def batch_rows(place: str, batches: Iterator[Any]) -> Iterator[Row]:
    """Yield rows of batches; ``place`` names their file or data set.

    Raises:
        DataError: a value cannot be read; names row and column.
    """
    number = 0
    for batch in batches:
        names = batch.schema.names
        columns = [
            _values(batch.column(i), f"{place}: row", number, names[i]) for i in range(len(names))
        ]
        for i in range(batch.num_rows):
            number += 1
            values = {name: column[i] for name, column in zip(names, columns, strict=True)}
            yield Row(f"{place}: row {number}", values)


def _values(column: Any, place: str, before: int, name: str) -> list[Any]:  # noqa: ANN401 - pyarrow is not typed
    """Return a column's plain values; name the first row whose value has none."""
    try:
        return _plain_values(column)
    except (pa.ArrowException, ValueError, OverflowError):
        for i in range(len(column)):
            try:
                _plain_values(column.slice(i, 1))
            except (pa.ArrowException, ValueError, OverflowError) as error:
                why = str(error).split("\n")[0]
                message = (
                    f"{place} {before + i + 1}, {name}: {column.type} cannot be read ({why}); mend "
                    "the cell or leave the column out"
                )
                raise DataError(message) from error
        raise


def _plain_values(column: Any) -> list[Any]:  # noqa: ANN401 - pyarrow is not typed
    plain = plain_type(column.type)
    cells = column if plain == column.type else column.cast(plain)
    values: list[Any] = cells.to_pylist()
    return [_objects(value, plain) for value in values] if _has_map(plain) else values


def plain_type(kind: Any) -> Any:  # noqa: ANN401, PLR0911 - pyarrow is not typed; one return a family
    """Return the type whose Python values JSON can hold, where there is one without loss."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if types.is_temporal(kind) and not types.is_duration(kind) and not types.is_interval(kind):
        return pa.large_string()
    if types.is_decimal(kind):
        return pa.large_string()
    if types.is_float16(kind):
        return pa.float32()
    if types.is_struct(kind):
        return pa.struct(
            [field.with_type(plain_type(field.type)) for field in map(kind.field, range(len(kind)))]
        )
    if types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if _is_list(kind):
        return pa.large_list(kind.value_field.with_type(plain_type(kind.value_type)))
    return kind


def _is_list(kind: Any) -> bool:  # noqa: ANN401 - pyarrow is not typed
    views = getattr(types, "is_list_view", bool), getattr(types, "is_large_list_view", bool)
    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(test(kind) is True for test in (*tests, *views))


def _has_map(kind: Any) -> bool:  # noqa: ANN401 - pyarrow is not typed
    if types.is_map(kind):
        return True
    return any(_has_map(kind.field(i).type) for i in range(kind.num_fields))


def _objects(value: Any, kind: Any) -> Any:  # noqa: ANN401 - a tree of plain values
    """Return a value whose maps are objects; keys twice or no texts leave a list of pairs."""
    if value is None:
        return None
    if types.is_map(kind):
        pairs = [(key, _objects(item, kind.item_type)) for key, item in value]
        found = {key: item for key, item in pairs if isinstance(key, str)}
        return found if len(found) == len(pairs) else pairs
    if types.is_struct(kind):
        return {name: _objects(value[name], kind.field(name).type) for name in value}
    if _is_list(kind):
        return [_objects(item, kind.value_type) for item in value]
    return value


def _batches(dataset: Any) -> Iterator[Any]:  # noqa: ANN401 - datasets has no typed table
    size = _batch_rows(dataset.data.nbytes, dataset.data.num_rows)
    for table in dataset.with_format("arrow").iter(batch_size=size):
        yield from table.to_batches()


def _batch_rows(size: int, rows: int) -> int:
    """Return the rows of a batch, from the bytes that a number of rows takes."""
    return max(1, min(_MOST_ROWS, _BATCH_BYTES * rows // max(1, size)))


def _checked(source: str, batches: Iterator[Any]) -> Iterator[Any]:
    """Yield batches; refuse two columns of one name."""
    for batch in batches:
        names = batch.schema.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            message = f"{source}: has more than one column {twice[0]!r}; rename one of them"
            raise DataError(message)
        yield batch


@contextmanager
def _named(source: str) -> Iterator[None]:
    """Name the source of whatever its reader raises inside the block."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # datasets and pyarrow raise whatever their readers raise
        why = str(error.__cause__ or error).strip().split("\n")[0]
        cure = (
            "mend the file" if Path(source).exists() else "there is no such file or folder either"
        )
        message = f"{source}: cannot be read as a data set ({type(error).__name__}: {why}); {cure}"
        raise DataError(message) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide progress bars and log lines of ``datasets`` inside the block."""
    hidden, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not hidden:
            datasets.enable_progress_bars()
