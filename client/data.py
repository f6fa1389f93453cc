"""Samples from JSONL, Parquet, CSV, a folder or a hub name, read lazily through ``datasets``.

Texts stay on the disk (Arrow, memory-mapped); an opened file holds ids and domains only. The Arrow
copy lies in a private temporary folder that goes with the object: no text enters a shared cache.
"""

import hashlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import datasets

from fedwinnow.curation.config import ColumnsSection
from fedwinnow.curation.errors import DataError
from fedwinnow.curation.nouns import Sample

LOADERS: Mapping[str, str] = {".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
"""File ending → loader of ``datasets``."""
_BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples(Sequence[Sample]):
    """A lazy sequence of samples; only ids and domains are in memory."""

    source: str
    ids: tuple[str, ...]
    domains: tuple[str, ...]
    rows: tuple[int, ...]
    """Row of each sample in the table."""
    _table: Any
    _columns: ColumnsSection
    _domain: str

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Samples": ...
    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        if isinstance(index, slice):
            return self.subset(range(*index.indices(len(self))))
        row = self.rows[int(index)]
        place = f"{self.source}: row {row + 1}"
        return _sample(self._table[row], self._columns, self._domain, place)

    def subset(self, indices: Sequence[int]) -> "Samples":
        """The samples at some positions, in the given order, still lazy."""
        return Samples(
            source=self.source,
            ids=tuple(self.ids[i] for i in indices),
            domains=tuple(self.domains[i] for i in indices),
            rows=tuple(self.rows[i] for i in indices),
            _table=self._table,
            _columns=self._columns,
            _domain=self._domain,
        )


def open_samples(source: str, columns: ColumnsSection, *, domain: str = "") -> Samples:
    """Open a data source; every row is checked, none is kept.

    Args:
        source: A ``.jsonl``, ``.parquet`` or ``.csv`` file, a folder (of such files, or written by
            ``save_to_disk``), or a hub name, with ``:split`` if not ``train``.
        columns: Which column holds what.
        domain: Domain of samples whose own is empty.

    Raises:
        DataError: the source is missing, empty or broken; names file, line and column.
    """
    path = Path(source)
    lines = path.is_file() and path.suffix == ".jsonl"
    if lines:  # before Arrow sees it: its errors name no line
        checked = [(sample.id, sample.domain) for sample in _checked_lines(path, columns, domain)]
    with ExitStack() as cleaning:  # the folder goes with the last of the samples, silently
        folder = tempfile.mkdtemp(prefix="fedwinnow-arrow-")
        cleaning.callback(shutil.rmtree, folder, ignore_errors=True)
        table = _table(source, folder)
        weakref.finalize(table, cleaning.pop_all().close)
    if not lines:
        _require(columns, table.column_names, source)
        checked = [(s.id, s.domain) for s in _checked_rows(table, columns, domain, source)]
    if not checked:
        message = f"{source}: holds no sample; give a file with at least one row"
        raise DataError(message)
    ids, domains = zip(*checked, strict=True)
    return Samples(
        source=source,
        ids=ids,
        domains=domains,
        rows=tuple(range(len(ids))),
        _table=table,
        _columns=columns,
        _domain=domain,
    )


def columns_of(source: str) -> tuple[str, ...]:
    """Names of a source's columns.

    Raises:
        DataError: the source is missing, empty or broken.
    """
    path = Path(source)
    if path.is_file() and path.suffix == ".jsonl":
        for _, row in _lines(path):
            return tuple(row)
        message = f"{source}: holds no sample; give a file with at least one row"
        raise DataError(message)
    with tempfile.TemporaryDirectory(prefix="fedwinnow-arrow-") as folder:
        return tuple(_table(source, folder).column_names)


def content_id(history: Sequence[tuple[str, str]], prompt: str, response: str) -> str:
    """Id of a content: 32 hex digits of a SHA-256 over turns, prompt and response."""
    text = json.dumps([list(map(list, history)), prompt, response], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def data_hash(samples: Samples) -> str:
    """SHA-256 over the ids and domains, whatever their order."""
    pairs = sorted(zip(samples.ids, samples.domains, strict=True))
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _table(source: str, folder: str) -> Any:  # noqa: ANN401 - datasets has no typed table
    path = Path(source)
    options: dict[str, Any] = {"cache_dir": folder, "split": "train"}
    try:
        with _quiet():
            if path.is_file():
                return datasets.load_dataset(_loader(path), data_files=str(path), **options)
            if path.is_dir() and (path / "state.json").exists():
                return datasets.load_from_disk(str(path))
            if path.is_dir():
                kind, files = _files(path)
                return datasets.load_dataset(kind, data_files=files, **options)
            if path.suffix in LOADERS or source.startswith((".", "/", "~")) or not source:
                message = f"{source!r}: no such data file; give its path, a folder or a hub name"
                raise DataError(message)  # noqa: TRY301 - passes through below
            name, _, split = source.partition(":")
            return datasets.load_dataset(name, **(options | {"split": split or "train"}))
    except DataError:
        raise
    except Exception as error:  # datasets raises whatever its readers raise
        first = str(error.__cause__ or error).strip().split("\n")[0]
        what = f"{type(error).__name__}: {first}"
        message = f"{source}: cannot be read as a data set ({what}); mend the file"
        raise DataError(message) from error


def _loader(path: Path) -> str:
    if path.suffix not in LOADERS:
        message = f"{path}: ending {path.suffix!r} is unknown; give one of {', '.join(LOADERS)}"
        raise DataError(message)
    if path.stat().st_size == 0:
        message = f"{path}: the file is empty; give a file with at least one row"
        raise DataError(message)
    return LOADERS[path.suffix]


def _files(folder: Path) -> tuple[str, list[str]]:
    """The data files of a folder, which must be of one kind."""
    found = {ending: sorted(map(str, folder.glob(f"*{ending}"))) for ending in LOADERS}
    present = {ending: files for ending, files in found.items() if files}
    if len(present) != 1:
        names = ", ".join(present) or "none of them"
        message = f"{folder}: expected files of one kind ({', '.join(LOADERS)}), found {names}"
        raise DataError(message)
    ((ending, files),) = present.items()
    return LOADERS[ending], files


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of a JSONL file."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        message = (
                            f"{path}: line {number}: expected a JSON object, got {line[:40]!r}"
                        )
                        raise DataError(message)
                    yield number, row
    except json.JSONDecodeError as error:
        message = f"{path}: line {number}: broken JSON ({error.msg}); mend or remove the line"
        raise DataError(message) from error
    except UnicodeDecodeError as error:
        message = f"{path}: not UTF-8 text ({error.reason}); convert the file"
        raise DataError(message) from error


def _checked_lines(path: Path, columns: ColumnsSection, domain: str) -> Iterator[Sample]:
    for number, row in _lines(path):
        place = f"{path}: line {number}"
        _require(columns, row, place)
        yield _sample(row, columns, domain, place)


def _checked_rows(
    table: Any,  # noqa: ANN401 - datasets has no typed table
    columns: ColumnsSection,
    domain: str,
    source: str,
) -> Iterator[Sample]:
    number = 0
    for batch in table.iter(batch_size=_BATCH):
        for values in zip(*batch.values(), strict=True):
            number += 1
            row = dict(zip(batch, values, strict=True))
            yield _sample(row, columns, domain, f"{source}: row {number}")


def _require(columns: ColumnsSection, present: Any, place: str) -> None:  # noqa: ANN401 - names or a row
    texts = (columns.messages,) if columns.messages else (columns.prompt, columns.response)
    wanted = [*texts, *([columns.domain] if columns.domain else []), *columns.labels]
    for name in wanted:
        if name not in present:
            message = (
                f"{place}: column {name!r} is missing; there are {', '.join(map(str, present))}; "
                "map the names in columns"
            )
            raise DataError(message)


def _sample(row: Mapping[str, Any], columns: ColumnsSection, domain: str, place: str) -> Sample:
    if columns.messages:
        history, prompt, response = _turns(row[columns.messages], f"{place}, {columns.messages}")
    else:
        history = ()
        prompt = _text(row[columns.prompt], f"{place}, {columns.prompt}")
        response = _text(row[columns.response], f"{place}, {columns.response}")
    own = str(row.get(columns.domain) or "") if columns.domain else ""
    return Sample(
        id=content_id(history, prompt, response),
        prompt=prompt,
        response=response,
        domain=own or domain,
        history=history,
        labels={name: "" if row.get(name) is None else str(row[name]) for name in columns.labels},
    )


def _text(value: object, place: str) -> str:
    if value is None:
        return ""  # an empty cell: the sample gets a status where its response is empty
    if not isinstance(value, str):
        message = f"{place}: expected a text, got {type(value).__name__} {str(value)[:40]!r}"
        raise DataError(message)
    return value


def _turns(turns: object, place: str) -> tuple[tuple[tuple[str, str], ...], str, str]:
    """History, last user turn, last assistant turn of a chat."""
    form = all(
        isinstance(turn, Mapping)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str)
        for turn in (turns if isinstance(turns, list) else [None])
    )
    if not isinstance(turns, list) or not form:
        message = f"{place}: expected a list of {{role, content}} texts, got {str(turns)[:60]!r}"
        raise DataError(message)
    pairs = [(str(turn["role"]), str(turn["content"])) for turn in turns]
    answers = [i for i, (role, _) in enumerate(pairs) if role == "assistant"]
    if not answers:
        message = f"{place}: the chat has no assistant turn; there is nothing to learn from it"
        raise DataError(message)
    last = answers[-1]
    asked = [i for i, (role, _) in enumerate(pairs[:last]) if role == "user"]
    if not asked:
        message = f"{place}: no user turn stands before the last assistant turn; add the question"
        raise DataError(message)
    return tuple(pairs[: asked[-1]]), pairs[asked[-1]][1], pairs[last][1]


class _quiet:  # noqa: N801 - used as a word
    """Hides progress bars of ``datasets`` for a while."""

    def __enter__(self) -> None:
        self.shown = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()

    def __exit__(self, *_: object) -> None:
        if not self.shown:
            datasets.enable_progress_bars()
