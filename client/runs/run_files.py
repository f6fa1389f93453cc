"""Name the files and folders that a site keeps of one run, on its own disk.

What a site sends is a message; a file is never sent. Where a file holds what a message repeats, or
the very bytes of a reply, its docstring says so. All others hold figures of single samples.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from fedwinnow.curation.config.identity import run_id, sites_folder
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.errors import ProtocolError

_TERMS = "terms.json"
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TAKEN = frozenset({"datasets", "sequence"})
"""Names in a work folder that are the site's own."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Paths of a run's files below its folder, whether or not they exist."""

    folder: Path
    """Folder of this run at this site."""

    @property
    def terms(self) -> Path:
        """Return the path of the agreed terms as JSON, as the join request brought them."""
        return self.folder / _TERMS

    @property
    def gate(self) -> Path:
        """Return the path of the rows that the gates left out, with the reason; never leaves.

        Rows are named by their place in the data.
        """
        return self.folder / "gate.json"

    @property
    def teacher(self) -> Path:
        """Return the path of the joined teacher's fingerprint, which the site card holds too."""
        return self.folder / "teacher.sha256"

    def signals(self, checkpoint: int) -> Path:
        """Return the path of the private samples' signals at a checkpoint; never leaves."""
        return self.folder / f"signals-{checkpoint}.parquet"

    def measured_checkpoints(self) -> list[int]:
        """Return the checkpoints that have a table of signals, in order of the files' names."""
        files = sorted(self.folder.glob("signals-*.parquet"))
        return [int(file.stem.removeprefix("signals-")) for file in files]

    def public(self, checkpoint: int) -> Path:
        """Return the path of the public rows' signals at a checkpoint; a reply holds them too."""
        return self.folder / f"public-{checkpoint}.parquet"

    @property
    def scores(self) -> Path:
        """Return the path of all scores and the histogram's edges; only the histogram leaves."""
        return self.folder / "scores.parquet"

    @property
    def selection(self) -> Path:
        """Return the path of the arms' selections, with reasons; only rounded counts leave."""
        return self.folder / "selection.parquet"

    @property
    def queue(self) -> Path:
        """Return the path of the samples that a person is asked about, if any; never leaves."""
        return self.folder / "queue.parquet"

    @property
    def trajectories(self) -> Path:
        """Return the path of each sample's standardised loss by checkpoint; never leaves."""
        return self.folder / "trajectories.parquet"

    def clusters(self, exchange: int) -> Path:
        """Return the path of an exchange's clusters by sample, from 1; only counts, sums leave."""
        return self.folder / f"clusters-{exchange}.parquet"

    def all_clusters(self) -> list[Path]:
        """Return the files of every exchange that was answered."""
        return sorted(self.folder.glob("clusters-*.parquet"))

    def stage(self, arm: str, number: int) -> Path:
        """Return the path of the samples that an arm's stage took, best first; never leaves."""
        return self.folder / f"stage-{arm}-{number}.parquet"

    def all_stages(self, arm: str) -> list[Path]:
        """Return the files of every stage of an arm that has begun."""
        return sorted(self.folder.glob(f"stage-{arm}-*.parquet"))

    def gradient_norms(self, arm: str, round_number: int) -> Path:
        """Return the path of each step's gradient norm in an arm's round; never leaves."""
        return self.folder / f"gradient-norms-{arm}-{round_number}.json"

    def reply(self, phase: str, key: str) -> Path:
        """Return the path of a reply, by phase and hash of the request: the bytes that leave."""
        return self.folder / "replies" / f"{phase}-{key}.safetensors"

    @property
    def tokens(self) -> Path:
        """Return the folder of the private samples' tokens until the run closes; never leaves."""
        return self.folder / "tokens"

    @property
    def shards(self) -> Path:
        """Return the folder of finished shards of signals during a pass; never leaves."""
        return self.folder / "shards"


def run_files(work: Path, run: str) -> RunFiles:
    """Return the files of a run below a site's work folder, whether or not it was joined.

    Raises:
        ProtocolError: the run id is no name of a folder of its own.
    """
    if not _RUN_ID.fullmatch(run) or run in _TAKEN:
        message = (
            f"run id {run[:80]!r}: expected 1 to 64 ASCII letters, digits, '-' and '_', and none "
            f"of {', '.join(sorted(_TAKEN))}"
        )
        raise ProtocolError(message, clause="protocol")
    return RunFiles(work / run)


def open_runs(work: Path) -> list[str]:
    """Return the ids of the runs that were joined and not closed, sorted."""
    closed = (sorted((work / run / "replies").glob("close-*")) for run in joined_runs(work))
    return [run for run, replies in zip(joined_runs(work), closed, strict=True) if not replies]


def joined_runs(work: Path) -> list[str]:
    """Return the ids of the runs that a site's work folder holds, sorted."""
    return sorted(file.parent.name for file in work.glob(f"*/{_TERMS}"))


def simulated_run_files(config: RunConfig, site: str) -> RunFiles:
    """Return the files of a simulated site, which lie inside the run folder."""
    return RunFiles(sites_folder(config) / site / run_id(config))
