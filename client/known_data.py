"""Which data sets a site has released figures of: a slightly changed one is still the same.

Two histograms of data that differ in one sample would tell that sample's score. So a data set that
differs from an earlier one by fewer than ``min_change`` samples (added and removed together) counts
as that one. The ids are hashes of contents; they stay at the site.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedwinnow.client.work import Work
from fedwinnow.curation.files import write


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownData:
    """The folder that remembers data sets by their samples' ids."""

    folder: Path
    min_change: int

    def identify(self, work: Work) -> str:
        """The name of a run's data set: that of the earliest one that it hardly differs from.

        Raises:
            OutputError: the folder cannot be written.
        """
        ids = ids_of(work)
        for file in sorted(self.folder.glob("*.ids"), key=lambda f: (f.stat().st_mtime_ns, f.name)):
            if len(ids ^ set(file.read_text(encoding="ascii").split())) < self.min_change:
                return file.stem
        name = hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()
        write(self.folder / f"{name}.ids", "\n".join(sorted(ids)).encode())
        return name


def ids_of(work: Work) -> frozenset[str]:
    """Every sample that the gate let in; how a run divides them does not matter."""
    return frozenset(chain_ids((work.pool.samples.ids, work.pool.own_holdout.ids)))


def chain_ids(parts: Iterable[Iterable[str]]) -> Iterable[str]:
    """The ids of several parts, one after the other."""
    for part in parts:
        yield from part
