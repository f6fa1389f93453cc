"""Measure a long pass in shards that are stored on disk, so that a kill costs one shard.

Shard k holds the samples k S … (k + 1) S − 1 in data order. The cut depends on S alone, and batches
never cross it, so that tables are bit-identical whoever measures the shards, and when.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from fedwinnow.client.measuring.pass_options import OnProgress
from fedwinnow.client.runs.run_files import RunFiles
from fedwinnow.client.runs.tables import read_signals, write_signals
from fedwinnow.curation.datatypes import Sample, SignalTable

logger = logging.getLogger(__name__)

SHARD = 1024
"""Samples of a shard; a pass over fewer is not cut."""

Shard = tuple[int, Sequence[Sample]]
Pass = Callable[[Sequence[Sample], OnProgress | None], SignalTable]
"""Measures samples in one go and reports progress."""
ShardMeasurer = Callable[[Iterable[Shard]], Iterator[tuple[int, SignalTable]]]
"""Measures numbered shards side by side, and yields their tables in any order."""


def measure_in_shards(
    measure: Pass,
    samples: Sequence[Sample],
    *,
    files: RunFiles,
    key: Sequence[str],
    on_progress: OnProgress | None = None,
    workers: ShardMeasurer | None = None,
    size: int = SHARD,
) -> SignalTable:
    """Measure shard by shard; shards that are on disk already are read, not measured.

    Args:
        measure: Measures one shard, where there are no workers.
        samples: Read shard by shard.
        files: Files of the run.
        key: What the numbers depend on besides the samples and the run's terms.
        on_progress: Called with (samples done, all of them).
        workers: Measures several shards at a time; None: one after the other, in this process.
        size: Samples of a shard, at least 1.

    Returns:
        The tables of all shards, one below the other.

    Raises:
        OutputError: a shard cannot be written.
    """
    if len(samples) <= size and workers is None:
        return measure(samples, on_progress)
    name = hashlib.sha256("\0".join(key).encode()).hexdigest()[:16]
    starts = range(0, max(len(samples), 1), size)
    paths = [files.shards / f"{name}-{start // size}.parquet" for start in starts]

    def shard(index: int) -> Sequence[Sample]:
        return samples[starts[index] : starts[index] + size]

    stored = {index for index, path in enumerate(paths) if _is_stored(path, shard(index))}
    done = sum(len(shard(index)) for index in stored)

    def one_by_one(shards: Iterable[Shard]) -> Iterator[tuple[int, SignalTable]]:
        for index, part in shards:
            yield index, measure(part, _within(on_progress, done, len(part), len(samples)))

    missing = ((index, shard(index)) for index in range(len(paths)) if index not in stored)
    for index, found in (workers or one_by_one)(missing):
        write_signals(paths[index], found)
        done += len(found.ids)
        if on_progress is not None:
            on_progress(done, len(samples))
    return stack_tables((read_signals(path) for path in paths), len(samples))


def remove_shards(files: RunFiles) -> None:
    """Remove the shards of a run, once their table is on disk."""
    shutil.rmtree(files.shards, ignore_errors=True)


def stack_tables(parts: Iterable[SignalTable], number: int) -> SignalTable:
    """Stack tables of the same pass; free each before the next is read.

    Args:
        parts: Tables, at least one.
        number: Rows of all tables together.
    """
    rest = iter(parts)
    first = next(rest)
    ids, domains, known = list[str](), list[str](), dict[str, str]()
    status = np.empty(number, dtype=np.int8)
    columns = {
        name: np.empty((number, *values.shape[1:]), dtype=values.dtype)
        for name, values in first.columns.items()
    }
    for part in chain((first,), rest):
        rows = slice(len(ids), len(ids) + len(part.ids))
        status[rows] = part.status
        for name, values in columns.items():
            values[rows] = part.columns[name]
        ids += part.ids
        domains += [known.setdefault(name, name) for name in part.domains]
    return replace(first, ids=tuple(ids), domains=tuple(domains), status=status, columns=columns)


def _is_stored(path: Path, shard: Sequence[Sample]) -> bool:
    """Return whether a shard's table is on disk, and of these samples."""
    if not path.exists():
        return False
    if read_signals(path).ids != tuple(sample.id for sample in shard):
        logger.warning("%s is of other samples and is measured anew", path.name)
        return False
    logger.info("%s is on disk and is not measured again", path.name)
    return True


def _within(
    on_progress: OnProgress | None, start: int, length: int, total: int
) -> OnProgress | None:
    """Return a callback that reports a shard's passes as samples of the whole."""
    if on_progress is None:
        return None
    return lambda done, passes: on_progress(start + length * done // max(passes, 1), total)
