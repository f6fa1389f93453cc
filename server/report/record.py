"""Define the record of a finished run, ``record.json``: typed, frozen, read and written strictly.

Report, command line, studies and comparisons read it; nothing in it names a sample of a site.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedwinnow.curation.config.strict_toml import to_plain
from fedwinnow.curation.config.typed_json import parse_tree
from fedwinnow.curation.errors import DataError
from fedwinnow.server.report.comparisons import ArmDifference, ScorerFigures, SelectionFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedScorer:
    """Scorer that the run selected by."""

    name: str
    unit: str
    """Unit of its scores: "probability", "nats" …"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedThreshold:
    """Threshold that the sites applied, and the evidence for it."""

    name: str
    """Threshold rule."""
    value: float | None
    """In the scorer's unit; −inf keeps all, None before any was found. In JSON an infinity is a
    string."""
    per_site: Mapping[str, float | None] = field(default_factory=dict)
    """Site → its own threshold, for rules that set one per site."""
    evidence: Mapping[str, float]
    """``expected_recall``, ``clean_share``, ``rank_error`` … by name."""

    @property
    def cut(self) -> float | None:
        """Return the threshold, or None where it is infinite or missing: nothing is cut."""
        return _finite(self.value)

    @property
    def cuts(self) -> dict[str, float]:
        """Return site → its own finite threshold; empty where one value holds everywhere."""
        found = {site: _finite(value) for site, value in self.per_site.items()}
        return {site: value for site, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedPublicRows:
    """Public calibration rows: anchors and their corruptions, one entry a row."""

    scores: tuple[float, ...]
    """Held-out scores in the scorer's unit."""
    kinds: tuple[str, ...]
    """"clean" or the kind of corruption."""
    domains: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSite:
    """Samples of one site, and the histogram of their scores."""

    site: str
    samples: int
    kept: int
    """Samples that the curated arm keeps."""
    unscored: int
    """Samples without a score."""
    edges: tuple[float, ...]
    """Inner edges of the histogram's cells, in the scorer's unit; empty without a histogram."""
    counts: tuple[float, ...]
    """Samples in each cell, one more than the edges."""

    @property
    def share(self) -> float:
        """Return the share of samples that is kept; 0 for a site without samples."""
        return self.kept / self.samples if self.samples else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedContribution:
    """Training of one site in one round: samples and losses."""

    samples: int
    losses: tuple[float, ...]
    """Training loss of each optimizer step, nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRound:
    """One training round of an arm."""

    round: int
    """Counted from 1."""
    eval_loss: float | None
    """Mean public hold-out loss after it, nats; None where it was not measured."""
    merge: Mapping[str, float]
    """Figures of the merge by name, ``discarded_energy`` among them."""
    weights: Mapping[str, float]
    """Site → weight in the merge."""
    bounded: Mapping[str, str] = field(default_factory=dict)
    """Site → what the guards did to its adapter, and why; only sites that were bounded."""
    sites: Mapping[str, RecordedContribution]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedArm:
    """Study arm: training on one selection, and its outcome."""

    kept: int
    """Samples of all sites that it trains on."""
    kept_by_site: Mapping[str, int]
    steps: int
    """Optimizer steps of each site, all rounds together."""
    eval_loss: float | None
    """Mean public hold-out loss after the last round, nats."""
    losses: tuple[float, ...]
    """Loss of each public hold-out item after the last round, nats."""
    rounds: tuple[RecordedRound, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedPhase:
    """One exchange with the sites."""

    phase: str
    round: int
    arm: str
    seconds: float
    bytes_down: int
    """Sent to all sites together."""
    bytes_up: int
    """Received from all sites together."""
    missing: Mapping[str, str]
    """Site → why its answer did not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedGenerations:
    """Greedy answers to public hold-out prompts, one entry a prompt."""

    prompts: tuple[str, ...]
    references: tuple[str, ...]
    before: tuple[str, ...]
    """Of the untrained adapter."""
    after: tuple[str, ...]
    """Of the curated adapter; empty where it was not asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedMember:
    """Member as it described itself at join."""

    site: str
    samples: int
    base: str
    """Fingerprint of the base model."""
    anchors: str
    """Hash of the anchor set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedAdapter:
    """Curated adapter that the run leaves behind."""

    path: str
    """Relative to the run folder."""
    hash: str
    rank: int
    """Largest over its modules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedClusters:
    """Clusters of loss trajectories, one entry a cluster."""

    counts: tuple[int, ...]
    """Samples that pass the threshold, all sites together."""
    quotas: tuple[int, ...]
    """Samples that are kept."""
    centroids: tuple[tuple[float, ...], ...]
    """Standardised loss at each checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RunRecord:
    """Record of a finished run: what was kept, how well, what it cost, outcome of each arm."""

    run: str
    created: str
    """ISO 8601, UTC."""
    seed: int
    seconds: float
    """All exchanges together."""
    scorer: RecordedScorer
    threshold: RecordedThreshold
    forecast: Mapping[str, float]
    """Figures forecast on the public rows, by name."""
    public: RecordedPublicRows
    sites: tuple[RecordedSite, ...]
    initial_loss: float | None
    """Mean public hold-out loss of the untrained adapter, nats."""
    arms: Mapping[str, RecordedArm]
    arm_differences: Mapping[str, ArmDifference]
    """Arm → its evaluation loss minus the curated arm's."""
    phases: tuple[RecordedPhase, ...]
    generations: RecordedGenerations
    versions: Mapping[str, str]
    """Package → version."""
    members: tuple[RecordedMember, ...]
    adapter: RecordedAdapter | None
    """None where the curated arm kept nothing."""
    clusters: RecordedClusters | None = None
    """None in a run without clusters; then the key is not written."""
    command: str
    """Command line that repeats the run; "" where it is not known."""
    remarks: tuple[str, ...] = ()
    """Warnings about the plan and its outcome."""
    selection: SelectionFigures | None
    """Figures against planted truth, where a simulation knows it."""

    @property
    def kept(self) -> int:
        """Return the samples that are kept, all sites together."""
        return sum(site.kept for site in self.sites)

    @property
    def samples(self) -> int:
        """Return the samples of all sites together."""
        return sum(site.samples for site in self.sites)

    @property
    def figures_by_scorer(self) -> dict[str, ScorerFigures]:
        """Return scorer → figures, the run's own first; empty where no truth is known."""
        if self.selection is None:
            return {}
        return {self.scorer.name: self.selection, **self.selection.comparison}

    def to_json(self) -> dict[str, Any]:
        """Return the tree that ``record.json`` holds."""
        tree: dict[str, Any] = to_plain(self)
        threshold = self.threshold
        tree["threshold"]["value"] = _written(threshold.value)
        tree["threshold"]["per_site"] = {k: _written(v) for k, v in threshold.per_site.items()}
        if self.clusters is None:
            del tree["clusters"]
        return tree

    def __repr__(self) -> str:
        adapter = None if self.adapter is None else self.adapter.path
        return (
            f"RunRecord(run={self.run!r}, scorer={self.scorer.name!r}, "
            f"kept={self.kept} of {self.samples} samples, adapter={adapter!r})"
        )


def read_record(path: Path) -> RunRecord:
    """Read the ``record.json`` of a finished run.

    Raises:
        DataError: the file is missing, no JSON, or not the record of a finished run; names the
            file and the key.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path}: expected the record of a finished run ({error}); give a run folder"
        raise DataError(message) from error
    try:
        return parse_tree(tree, RunRecord)
    except DataError as error:
        message = f"{path}: not the record of a finished run ({error}); give a run folder"
        raise DataError(message) from error


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _written(threshold: float | None) -> float | str | None:
    """Return a threshold for strict JSON: an infinity as a string."""
    return threshold if threshold is None or math.isfinite(threshold) else str(threshold)
