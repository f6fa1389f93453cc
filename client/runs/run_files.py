"""Name the files and folders that a site keeps of one run, on its own disk.

What a site sends is a message; a file is never sent. Where a file holds what a message repeats, or
the very bytes of a reply, its docstring says so. All others hold figures of single samples.
"""

from dataclasses import dataclass
from pathlib import Path

from fedwinnow.curation.config.identity import run_id, sites_folder
from fedwinnow.curation.config.run import RunConfig

_TERMS = "terms.json"


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Paths of a run's files below its folder; whether they exist is another question."""

    folder: Path
    """Of this run at this site."""

    @property
    def terms(self) -> Path:
        """Agreed terms as JSON, as the join request brought them."""
        return self.folder / _TERMS

    @property
    def gate(self) -> Path:
        """Rows that the gates left out, by place in the data, with the reason; never leaves."""
        return self.folder / "gate.json"

    @property
    def teacher(self) -> Path:
        """Fingerprint of the teacher that the site joined with; the site card tells it too."""
        return self.folder / "teacher.sha256"

    def signals(self, checkpoint: int) -> Path:
        """Signals of the private samples at a checkpoint; never leave."""
        return self.folder / f"signals-{checkpoint}.parquet"

    def measured_checkpoints(self) -> list[int]:
        """Return the checkpoints that have a table of signals, in order of the files' names."""
        files = sorted(self.folder.glob("signals-*.parquet"))
        return [int(file.stem.removeprefix("signals-")) for file in files]

    def public(self, checkpoint: int) -> Path:
        """Signals of the public calibration rows at a checkpoint; a reply holds them too."""
        return self.folder / f"public-{checkpoint}.parquet"

    @property
    def scores(self) -> Path:
        """Scores of each sample, and the edges of the histogram; only the histogram leaves."""
        return self.folder / "scores.parquet"

    @property
    def selection(self) -> Path:
        """What each arm keeps of the samples, and why not the rest; only rounded counts leave."""
        return self.folder / "selection.parquet"

    @property
    def queue(self) -> Path:
        """Samples that a person is asked about, where the scorer asks; never leaves."""
        return self.folder / "queue.parquet"

    @property
    def trajectories(self) -> Path:
        """Standardised losses of each sample over the checkpoints; never leave."""
        return self.folder / "trajectories.parquet"

    def clusters(self, exchange: int) -> Path:
        """Cluster of each sample in an exchange, from 1; only counts and sums leave."""
        return self.folder / f"clusters-{exchange}.parquet"

    def all_clusters(self) -> list[Path]:
        """Return the files of every exchange that was answered."""
        return sorted(self.folder.glob("clusters-*.parquet"))

    def stage(self, arm: str, number: int) -> Path:
        """Samples that a curriculum stage of an arm took, best first; never leave."""
        return self.folder / f"stage-{arm}-{number}.parquet"

    def all_stages(self, arm: str) -> list[Path]:
        """Return the files of every stage of an arm that has begun."""
        return sorted(self.folder.glob(f"stage-{arm}-*.parquet"))

    def gradient_norms(self, arm: str, round_number: int) -> Path:
        """Gradient norm of each optimizer step of an arm's round; never leave."""
        return self.folder / f"gradient-norms-{arm}-{round_number}.json"

    def reply(self, phase: str, key: str) -> Path:
        """Reply to one request, named by phase and hash of the request: the bytes that leave."""
        return self.folder / "replies" / f"{phase}-{key}.safetensors"

    @property
    def tokens(self) -> Path:
        """Folder of the private samples' tokens until the run closes; they never leave."""
        return self.folder / "tokens"

    @property
    def shards(self) -> Path:
        """Folder of finished shards of signals while a pass goes on; they never leave."""
        return self.folder / "shards"


def joined_runs(work: Path) -> list[str]:
    """Return the ids of the runs that a site's work folder holds, sorted."""
    return sorted(file.parent.name for file in work.glob(f"*/{_TERMS}"))


def simulated_run_files(config: RunConfig, site: str) -> RunFiles:
    """Return the files of a simulated site, which lie inside the run folder."""
    return RunFiles(sites_folder(config) / site / run_id(config))
