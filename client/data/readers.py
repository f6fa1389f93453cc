"""Read raw rows of a data source one by one, each with its place for error messages.

Nothing is guessed about types: texts of CSV and JSONL come as they stand (no dates, no numbers).
No local file leaves a copy in the shared cache of ``datasets``, and none goes through its
``load_dataset``, which reports every call to a server of its makers.
"""

import csv
import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq

from fedwinnow.client.data.source_names import ENDINGS, refuse_missing
from fedwinnow.curation.errors import DataError
from fedwinnow.curation.process_guard import scratch_folder

_BATCH = 1000

Row = tuple[str, Mapping[str, Any]]
"""Place of a row (file and line, or file and row) and its values by column."""


def read_rows(source: str) -> Generator[Row, None, None]:
    """Yield rows of a file, a folder or a hub data set; close it if not read to the end.

    Args:
        source: A ``.jsonl``, ``.parquet`` or ``.csv`` file; a folder that holds such files of one
            kind (all of them are read, by name) or was written by ``save_to_disk``; or a hub name,
            with ``:split`` if not ``train``.

    Raises:
        DataError: the source is missing or broken; names the file, and the line where there is one.
    """
    path = Path(source)
    if source and path.is_file():
        yield from _file_rows(path)
    elif source and path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            yield from _table_rows(source, lambda _: _saved(path))
        else:
            for file in _files(path):
                yield from _file_rows(file)
    else:
        refuse_missing(source)
        name, _, split = source.partition(":")
        yield from _table_rows(
            source, lambda _: datasets.load_dataset(name, split=split or "train")
        )


def _file_rows(path: Path) -> Iterator[Row]:
    if path.suffix not in ENDINGS:
        message = f"{path}: ending {path.suffix!r} is unknown; give one of {', '.join(ENDINGS)}"
        raise DataError(message)
    if path.stat().st_size == 0:
        message = f"{path}: the file is empty; give a file with at least one row"
        raise DataError(message)
    if path.suffix == ".jsonl":
        yield from _lines(path)
    elif path.suffix == ".csv":
        yield from _table_rows(str(path), lambda cache: _csv(path, cache))
    else:
        yield from _table_rows(str(path), lambda cache: _parquet(path, cache))


def _lines(path: Path) -> Iterator[Row]:
    """Yield the objects of a JSONL file; skip blank lines."""
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                row = json.loads(text)
                if not isinstance(row, dict):
                    got = type(row).__name__
                    message = f"{path}: line {number}: expected a JSON object, got {got}"
                    raise DataError(message)
                yield f"{path}: line {number}", row
    except json.JSONDecodeError as error:
        message = f"{path}: line {number}: broken JSON ({error.msg}); mend or remove the line"
        raise DataError(message) from error
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8, or nested too deep
        message = f"{path}: line {number}: not UTF-8 JSON ({error}); mend or convert the line"
        raise DataError(message) from error
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror}); change its permissions"
        raise DataError(message) from error


def _table_rows(source: str, opened: Callable[[str], Any]) -> Iterator[Row]:
    """Yield the rows of a table that ``datasets`` opens, silently, with a temporary cache."""
    number = 0
    try:
        with _quiet(), _cache() as cache:
            for batch in opened(cache).iter(batch_size=_BATCH):
                for values in zip(*batch.values(), strict=True):
                    number += 1
                    yield f"{source}: row {number}", dict(zip(batch, values, strict=True))
    except DataError:
        raise
    except Exception as error:  # datasets raises whatever its readers raise
        why = str(error.__cause__ or error).strip().split("\n")[0]
        cure = (
            "mend the file" if Path(source).exists() else "there is no such file or folder either"
        )
        message = f"{source}: cannot be read as a data set ({type(error).__name__}: {why}); {cure}"
        raise DataError(message) from error


def _csv(path: Path, cache: str) -> Any:  # noqa: ANN401 - datasets has no typed table
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), [])
    texts = datasets.Features({name: datasets.Value("string") for name in header})
    return datasets.Dataset.from_csv(
        str(path), cache_dir=cache, features=texts, keep_default_na=False, streaming=True
    )


def _parquet(path: Path, cache: str) -> Any:  # noqa: ANN401 - datasets has no typed table
    if pq.read_metadata(path).num_rows == 0:
        message = f"{path}: holds no sample; give a file with at least one row"
        raise DataError(message)
    return datasets.Dataset.from_parquet(str(path), cache_dir=cache, streaming=True)


def _saved(folder: Path) -> Any:  # noqa: ANN401 - datasets has no typed table
    saved = datasets.load_from_disk(str(folder))
    if not isinstance(saved, Mapping):
        return saved
    if "train" not in saved:
        message = f"{folder}: no split 'train', only {', '.join(saved)}; give one split's folder"
        raise DataError(message)
    return saved["train"]


def _files(folder: Path) -> list[Path]:
    """Return the data files of a folder, which must be of one kind."""
    found = {ending: sorted(folder.glob(f"*{ending}")) for ending in ENDINGS}
    present = {ending: files for ending, files in found.items() if files}
    if len(present) != 1:
        names = ", ".join(present) or "none of them"
        message = f"{folder}: expected files of one kind ({', '.join(ENDINGS)}), found {names}"
        raise DataError(message)
    (files,) = present.values()
    return files


@contextmanager
def _cache() -> Iterator[str]:
    """Yield a folder for locks of ``datasets``."""
    with scratch_folder("arrow") as folder:
        yield str(folder)


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
