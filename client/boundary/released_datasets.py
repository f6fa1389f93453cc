"""Which data sets a site has released figures of: a slightly changed one is still the same.

Two histograms of data that differ in one sample would tell that sample's score. So two data sets
that differ by fewer than ``min_change`` samples (added and removed together) count as one. Every
version is kept exactly, and compared with every other: a data set that drifts by a few samples a
week is compared with what was released, not with what it once began as. The ids are hashes of
contents; they stay at the site.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fedwinnow.client.data.site_data import SiteData
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.curation.atomic_files import write_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedDatasets:
    """The folder that remembers data sets by their samples' ids."""

    folder: Path
    min_change: int
    _names: dict[int, tuple[SiteData, str]] = field(default_factory=dict, repr=False)
    """Pools of this process and their names, as naming a million samples takes a second."""

    def identify(self, run: SiteRun) -> str:
        """The name of a run's data set, SHA-256 over its ids; its ids are on the disk afterwards.

        Raises:
            OutputError: the folder cannot be written.
        """
        pool, name = self._names.get(id(run.data), (None, ""))
        if pool is not run.data:
            text = "\n".join(sorted(gated_ids(run)))
            name = hashlib.sha256(text.encode()).hexdigest()
            if not self._file(name).exists():
                write_atomically(self._file(name), text.encode())
            self._names[id(run.data)] = run.data, name
        return name

    def same(self, run: SiteRun, names: Iterable[str]) -> frozenset[str]:
        """Those of the named data sets that hardly differ from a run's; unreadable ones count."""
        mine, own = gated_ids(run), self.identify(run)
        return frozenset(
            name for name in set(names) if name == own or not self._differs(mine, name)
        )

    def division(self, run: SiteRun) -> str:
        """How the runs on this data set divide it: the first one's division, which this call pins.

        Raises:
            OutputError: the folder cannot be written.
        """
        stems = [file.stem for file in self.folder.glob("*.division")]
        for name in sorted(self.same(run, stems)):
            return self._file(name, "division").read_text(encoding="ascii")
        write_atomically(self._file(self.identify(run), "division"), holdout_division(run).encode())
        return holdout_division(run)

    def _differs(self, mine: frozenset[str], name: str) -> bool:
        try:
            other = set(self._file(name).read_text(encoding="ascii").split())
        except (OSError, UnicodeDecodeError):
            return False
        return len(mine ^ other) >= self.min_change

    def _file(self, name: str, kind: str = "ids") -> Path:
        return self.folder / f"{name}.{kind}"


def holdout_division(run: SiteRun) -> str:
    """Seed and share of the own hold-out, which decide who is in it; without one, no seed counts.

    Reference: two divisions of one data set differ by chosen samples, and so do their figures.
    """
    share = run.terms.evaluation.own_holdout
    return f"share {share!r}, seed {run.terms.run.seed}" if share > 0 else "none"


def gated_ids(run: SiteRun) -> frozenset[str]:
    """Every sample that the gate let in; how a run divides them does not matter."""
    return frozenset((*run.data.samples.ids, *run.data.own_holdout.ids))
