"""Remember which data sets figures were released of; a slightly changed one counts as the same.

Two histograms of data that differ in one sample would reveal that sample's score. So two data sets
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
    """Folder that remembers released data sets by their samples' ids."""

    folder: Path
    min_change: int
    _names: dict[int, tuple[SiteData, str]] = field(default_factory=dict, repr=False)
    """Data sets of this process and their names, as hashing a million ids takes a second."""

    def identify(self, run: SiteRun) -> str:
        """Return the name of a run's data set, SHA-256 over its ids, and store the ids on disk.

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
        """Return the named data sets that hardly differ from a run's; unreadable ones count."""
        mine, own = gated_ids(run), self.identify(run)
        return frozenset(
            name for name in set(names) if name == own or not self._differs(mine, name)
        )

    def division(self, run: SiteRun) -> str:
        """Return how runs divide this data set: the first run's division, which this call pins.

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
    """Return share and seed of the own hold-out, which decide its members; "none" without one.

    Two divisions of one data set differ by chosen samples, and so do their figures.
    """
    share = run.terms.evaluation.own_holdout
    return f"share {share!r}, seed {run.terms.run.seed}" if share > 0 else "none"


def gated_ids(run: SiteRun) -> frozenset[str]:
    """Return the ids of all samples that passed the gate, however the run divides them."""
    return frozenset((*run.data.samples.ids, *run.data.own_holdout.ids))
