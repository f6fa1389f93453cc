"""Result of a study and its JSON file: rows per seed and scorer or arm, differences, shares."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedwinnow.curation.config.strict_toml import to_plain
from fedwinnow.server.report.comparisons import ArmDifference, Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class StudiedRun:
    """Run that a row is about."""

    study: str
    model: str
    dataset: str
    """Names of the sites."""
    split: str
    n_private: int
    """Samples of all sites together."""
    n_anchors: int
    """Clean public rows for calibration."""
    noise_mix: str
    """Planted kinds of corruption."""
    seed: int
    seconds: float
    commit: str | None
    """Commit of the code that ran; None where unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerRow:
    """Figures of one scorer against planted truth in one run; shares and AUROCs in [0, 1]."""

    run: StudiedRun
    scorer: str
    threshold: str
    """Rule of the run's own scorer; "same count" for a comparison scorer."""
    auroc_pooled: float | None
    auroc_within: float | None
    auroc_by_corruption: Mapping[str, float]
    auroc_swap: float | None
    auroc_left_out: float | None
    """Mean AUROC on kinds that the fit never saw; None for other scorers than the run's."""
    auroc_left_out_by_corruption: Mapping[str, float]
    recall: float | None
    recall_by_site: Mapping[str, float]
    precision: float | None
    accuracy: float | None

    @property
    def deciding(self) -> bool:
        """Return whether the run selected by this scorer."""
        return self.threshold != "same count"

    def to_json(self) -> dict[str, Any]:
        """Return the row as a flat JSON object, with null where only arms have figures."""
        own = _flat(self)
        where = {"scorer": own.pop("scorer"), "threshold": own.pop("threshold"), "arm": None}
        return {**to_plain(self.run), **where, **own, "eval_loss": None, "gap_recovered": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRow:
    """Figures of one arm in one run."""

    run: StudiedRun
    scorer: str
    threshold: str
    arm: str
    kept: int
    """Samples that it trains on."""
    kept_by_domain: Mapping[str, int]
    steps: int
    """Optimizer steps of each site."""
    eval_loss: float | None
    """Mean public hold-out loss, nats per token."""
    eval_loss_by_domain: Mapping[str, float]
    """Empty where all items are of one domain."""
    gap_recovered: float | None
    """Share of the gap from keep_all to oracle that the arm closes; None without that gap."""

    def to_json(self) -> dict[str, Any]:
        """Return the row as a flat JSON object."""
        return {**to_plain(self.run), **_flat(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledDifference(Interval):
    """Loss of an arm minus curated's over the items of all seeds, nats."""

    items: int
    by_seed: Mapping[str, ArmDifference]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitDifference(Interval):
    """Curated loss of a split minus the first split's over the items of all seeds, nats."""

    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GapShare:
    """Share of the gap between keep_all and oracle that curated closes, with a 95 % interval."""

    share: float
    low: float
    high: float
    gap: float
    """Mean loss of keep_all minus oracle's, nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """Result of a study: all that its page and picture show."""

    study: str
    command: str
    machine: str
    commit: str | None
    seeds: tuple[int, ...]
    about: Mapping[str, str]
    """Split → its purpose; under "" the question of the whole study."""
    differences: Mapping[str, Mapping[str, PooledDifference]]
    """Split → arm → its loss against curated's."""
    recovered: Mapping[str, GapShare | None]
    """Split → share of the gap that curated closes; None without that gap."""
    compared: Mapping[str, SplitDifference | None]
    """Split → its curated loss against the first split's, which has None; empty where splits hold
    different data."""
    rows: tuple[ScorerRow | ArmRow, ...]

    def scorers(self, split: str) -> list[ScorerRow]:
        """Return the scorers' rows of a split, in order of seed."""
        return [r for r in self.rows if isinstance(r, ScorerRow) and r.run.split == split]

    def arms(self, split: str) -> list[ArmRow]:
        """Return the arms' rows of a split, in order of seed."""
        return [r for r in self.rows if isinstance(r, ArmRow) and r.run.split == split]

    def to_json(self) -> dict[str, Any]:
        """Return the tree of the study's JSON file."""
        return {**to_plain(self), "rows": [row.to_json() for row in self.rows]}


def _flat(row: ScorerRow | ArmRow) -> dict[str, Any]:
    """Return the row without its run."""
    tree: dict[str, Any] = to_plain(row)
    del tree["run"]
    return tree
