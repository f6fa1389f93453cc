"""Read and write the site's own Parquet tables, which never leave it: signals, scores, selection.

Written in blocks of rows and read column by column, so that little is held beside the table itself.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float

from fedwinnow.client.runs.told_text import tell
from fedwinnow.curation.atomic_files import replace_atomically
from fedwinnow.curation.datatypes import Scores, Selection, SignalTable
from fedwinnow.curation.errors import ProtocolError

_BLOCK = 65_536
"""Rows that are written at once."""


def write_signals(path: Path, table: SignalTable) -> None:
    """Write one row per sample; a column with several references becomes ``name.reference``."""
    extra = {
        "checkpoint": table.checkpoint,
        "references": list(table.references),
        "gram": table.reference_gram.tolist(),
        "learning_rate": table.learning_rate,
        "columns": {name: values.ndim for name, values in sorted(table.columns.items())},
    }
    _write(path, table.flat_columns(), extra)


def read_signals(path: Path) -> SignalTable:
    """Read the table that :func:`write_signals` wrote.

    Raises:
        ProtocolError: the file is not there: the phase that writes it has not run at this site.
    """
    table, extra = _read(path)
    references = tuple(extra["references"])
    columns = {}
    for name, axes in extra["columns"].items():
        if axes == 1:
            columns[name] = table[name].to_numpy()
        else:
            each = (table[f"{name}.{reference}"].to_numpy() for reference in references)
            columns[name] = _stack_references(each, len(references))
    return SignalTable(
        ids=tuple(table.texts("id")),
        domains=_domains(table.texts("domain")),
        checkpoint=int(extra["checkpoint"]),
        status=table["status"].to_numpy().astype(np.int8),
        columns=columns,
        references=references,
        reference_gram=np.array(extra["gram"], dtype=np.float64).reshape(
            len(references), len(references)
        )
        if extra["gram"]
        else np.zeros((0, 0)),
        learning_rate=float(extra["learning_rate"]),
    )


def write_scores(
    path: Path,
    table: SignalTable,
    scores: Mapping[str, Scores],
    edges: Float[np.ndarray, " edges"],
) -> None:
    """Write one row per sample, one float64 column per scorer (null where it has no score).

    The histogram's edges are stored too: a threshold is checked against them.
    """
    columns: dict[str, Any] = {
        "id": table.ids,
        "domain": table.domains,
        "status": table.status,
    }
    columns |= {name: pa.array(values, from_pandas=True) for name, values in scores.items()}
    _write(path, columns, {"edges": edges.tolist()})


def read_edges(path: Path) -> Float[np.ndarray, " edges"]:
    """Read the edges of the histogram that was sent."""
    _, extra = _read(path)
    return np.array(extra["edges"], dtype=np.float64)


def read_scores(path: Path, scorer: str) -> tuple[tuple[str, ...], np.ndarray, Scores]:
    """Read ids, status and the scores of one scorer (NaN where it has none).

    Raises:
        ProtocolError: the file or the scorer's column is not there.
    """
    table, _ = _read(path)
    return (
        tuple(table.texts("id")),
        table["status"].to_numpy().astype(np.int8),
        _column(table, scorer, path).to_numpy(),
    )


def write_queue(path: Path, ids: tuple[str, ...], queued: Bool[np.ndarray, " samples"]) -> None:
    """Write for each sample whether a person decides about it, should it pass the threshold."""
    _write(path, {"id": ids, "queued": queued}, {})


def read_queue(path: Path) -> Bool[np.ndarray, " samples"]:
    """Read what :func:`write_queue` wrote, in data order.

    Raises:
        ProtocolError: the file is not there.
    """
    table, _ = _read(path)
    queued: Bool[np.ndarray, " samples"] = table["queued"].to_numpy().astype(bool)
    return queued


def read_reasons(path: Path) -> dict[str, str]:
    """Read sample id → why the curated arm does not train on it; "" where it does.

    Raises:
        ProtocolError: the file is not there.
    """
    table, _ = _read(path)
    return dict(zip(table["id"].to_pylist(), table["reason"].to_pylist(), strict=True))


def write_selection(path: Path, selections: Mapping[str, Selection]) -> None:
    """Write one row per sample: kept and reason of the curated arm, kept of every other arm."""
    curated = selections["curated"]
    columns: dict[str, Any] = {
        "id": curated.ids,
        "kept": curated.kept,
        "reason": curated.reasons,
    }
    columns |= {
        f"kept.{arm}": selection.kept for arm, selection in selections.items() if arm != "curated"
    }
    _write(path, columns, {})


def read_kept(path: Path, arm: str) -> np.ndarray:
    """Read whether each sample is kept in an arm, in data order.

    Raises:
        ProtocolError: the file or the arm's column is not there.
    """
    table, _ = _read(path)
    name = "kept" if arm == "curated" else f"kept.{arm}"
    kept: np.ndarray = _column(table, name, path).to_numpy()
    return kept.astype(bool)


def write_trajectories(
    path: Path,
    ids: tuple[str, ...],
    points: Float[np.ndarray, "samples checkpoints"],
    start: Float[np.ndarray, "clusters checkpoints"],
) -> None:
    """Write each sample's standardised loss at each checkpoint, and the initial centroids."""
    columns = {f"z{t}": column for t, column in enumerate(points.T)}
    _write(path, {"id": ids, **columns}, {"start": start.tolist()})


def read_trajectories(
    path: Path,
) -> tuple[Float[np.ndarray, "samples checkpoints"], Float[np.ndarray, "clusters checkpoints"]]:
    """Read standardised losses in data order, and the initial centroids.

    Raises:
        ProtocolError: the file is not there.
    """
    table, extra = _read(path)
    start = np.array(extra["start"], dtype=np.float64)
    columns = [table[f"z{t}"].to_numpy() for t in range(start.shape[1])]
    return np.stack(columns, axis=1), start


def write_clusters(
    path: Path, ids: tuple[str, ...], places: np.ndarray, words: Mapping[str, Any]
) -> None:
    """Write each sample's cluster, −1 for none; ``words`` holds the exchange's request."""
    _write(path, {"id": ids, "cluster": places.astype(np.int64)}, words)


def read_clusters(path: Path) -> tuple[np.ndarray, Mapping[str, Any]]:
    """Read what :func:`write_clusters` wrote.

    Raises:
        ProtocolError: the file is not there.
    """
    table, words = _read(path)
    places: np.ndarray = table["cluster"].to_numpy()
    return places, words


def write_stage(path: Path, places: np.ndarray, scores: Scores) -> None:
    """Write a stage's samples, best first: position in data order, and score at the time."""
    _write(path, {"place": places.astype(np.int64), "score": scores}, {})


def read_stage(path: Path) -> tuple[np.ndarray, Scores]:
    """Read what :func:`write_stage` wrote.

    Raises:
        ProtocolError: the file is not there.
    """
    table, _ = _read(path)
    return table["place"].to_numpy(), table["score"].to_numpy()


def _write(path: Path, columns: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    words = {"fedwinnow": json.dumps(extra)}
    number = max(len(values) for values in columns.values())
    with replace_atomically(path) as temporary, ExitStack() as stack:
        writer: Any = None
        for start in range(0, max(number, 1), _BLOCK):
            part = {name: _part(values, start) for name, values in columns.items()}
            block = pa.table(part).replace_schema_metadata(words)
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(temporary, block.schema))
            writer.write_table(block)


def _part(values: Any, start: int) -> Any:  # noqa: ANN401 - pyarrow has no types
    """Return a block of a column: a tuple, an array (of any strides) or one of Arrow's."""
    part = values[start : start + _BLOCK]
    return np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """Columns of a file, each read on demand and not kept."""

    file: Any
    column_names: Sequence[str]

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - pyarrow has no types
        return self.file.read(columns=[name]).column(name)

    def texts(self, name: str) -> Iterator[str]:
        """Yield the texts of a column, block by block."""
        for block in range(self.file.num_row_groups):
            yield from self.file.read_row_group(block, columns=[name]).column(name).to_pylist()


def _read(path: Path) -> tuple[_Columns, Any]:
    if not path.exists():
        message = f"{path.name} is not there: the phase that makes it has not run at this site"
        told = tell("a phase before this one has not run at this site")
        raise ProtocolError(message, clause="protocol", told=told)
    file = pq.ParquetFile(path)
    words = (file.schema_arrow.metadata or {}).get(b"fedwinnow", b"{}")
    return _Columns(file=file, column_names=file.schema_arrow.names), json.loads(words)


def _stack_references(parts: Iterable[np.ndarray], number: int) -> np.ndarray:
    """Stack columns side by side; free each before the next is read."""
    found = np.zeros((0, number), dtype=np.float32)
    for place, part in enumerate(parts):
        if place == 0:
            found = np.empty((len(part), number), dtype=part.dtype)
        found[:, place] = part
    return found


def _domains(names: Iterable[str]) -> tuple[str, ...]:
    """Intern repeated domain names to save memory."""
    known: dict[str, str] = {}
    return tuple(known.setdefault(name, name) for name in names)


def _column(table: _Columns, name: str, path: Path) -> Any:  # noqa: ANN401 - pyarrow has no types
    if name not in table.column_names:
        message = f"{path.name} has no column {name!r}: the run's terms did not ask for it"
        raise ProtocolError(message, clause="protocol")
    return table[name]
