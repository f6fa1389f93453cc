"""Sections of ``run.toml`` that the server alone decides: deadlines, quorum, keys, members.

Each field is followed by one line with its unit and range, as in ``curation/config/run.py``.
"""

from dataclasses import dataclass, field, fields
from typing import Literal

from fedwinnow.curation.config.strict_toml import OMIT_DEFAULT, require_setting


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinesSection:
    """Longest wait for the replies of a phase, seconds, above 0; no wait is endless."""

    join: float = 1800.0
    """Join: a site may have to load data and model, seconds."""
    probe: float = 4 * 3600.0
    """Probe, seconds."""
    warm_up: float = 4 * 3600.0
    """One warm-up round, seconds."""
    measure: float = 12 * 3600.0
    """Measure at one checkpoint, seconds."""
    score: float = 1800.0
    """Score, seconds."""
    cluster: float = field(default=600.0, metadata=OMIT_DEFAULT)
    """One exchange of clusters, seconds."""
    select: float = 600.0
    """Select, seconds."""
    train: float = 24 * 3600.0
    """One training round, seconds."""
    judge: float = field(default=4 * 3600.0, metadata=OMIT_DEFAULT)
    """Judging the adapters of one round, seconds."""
    evaluate: float = 4 * 3600.0
    """One evaluation, seconds."""
    close: float = 600.0
    """Close, seconds."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            require_setting(f"deadlines.{one.name}", value, value > 0, "above 0")

    def of(self, phase: str) -> float:
        """Return the deadline of a phase, seconds."""
        return float(getattr(self, phase))


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardsSection:
    """Limits on one site's influence on a merge, in addition to any rule of [merging]."""

    norm: float = 0.0
    """Longest update of one site, in medians of the sites' norms, at least 0; 0 sets no bound."""
    weight: float = 1.0
    """Largest share of one site in a merge, in (0, 1]."""
    rule: Literal["none", "krum", "median", "trimmed_mean"] = "none"
    """Multi-Krum leaves ``liars`` sites out; median and trimmed mean take updates by coordinate."""
    liars: int = 1
    """How many sites may lie, at least 1; Krum needs 2 · liars + 3 sites, others 2 · liars + 1."""
    anchor_margin: float = 0.0
    """Largest rise of public anchors' loss that others may measure, as a share; 0: not asked."""
    kept_share: float = 0.0
    """Largest kept share that counts for a site, in medians of all, at least 0; 0 sets no bound."""
    summaries: Literal["auto", "sum", "clipped", "median"] = "auto"
    """Basis of the threshold: sum of all histograms, of ones clipped between the second lowest and
    second highest, or their median; auto clips from three sites on."""

    def __post_init__(self) -> None:
        require_setting(
            "guards.anchor_margin", self.anchor_margin, self.anchor_margin >= 0, "at least 0"
        )
        require_setting("guards.kept_share", self.kept_share, self.kept_share >= 0, "at least 0")
        require_setting("guards.norm", self.norm, self.norm >= 0, "at least 0")
        require_setting("guards.weight", self.weight, 0 < self.weight <= 1, "in (0, 1]")
        require_setting("guards.liars", self.liars, self.liars >= 1, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepSection:
    """Files of a run that the coordinator keeps beyond its result."""

    adapters: bool = False
    """Whether each site's adapter of each training round stays, for `fedwinnow remerge`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuorumSection:
    """Fewest sites that must answer a phase; 0 takes ``run.minimum_sites``."""

    join: int = 0
    """Join, at least 0."""
    probe: int = 0
    """Probe, at least 0."""
    warm_up: int = 0
    """Each warm-up round, at least 0."""
    measure: int = 0
    """Measure, at least 0."""
    score: int = 0
    """Score, at least 0."""
    cluster: int = field(default=0, metadata=OMIT_DEFAULT)
    """Each exchange of clusters, at least 0."""
    select: int = 0
    """Select, at least 0."""
    train: int = 0
    """Each training round, at least 0."""
    judge: int = field(default=0, metadata=OMIT_DEFAULT)
    """Each round's judging, at least 0."""
    evaluate: int = 0
    """Each evaluation, at least 0."""
    close: int = 0
    """Close, at least 0."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            require_setting(f"quorum.{one.name}", value, value >= 0, "at least 0")

    def of(self, phase: str, otherwise: int) -> int:
        """Return the number of sites that a phase needs; ``otherwise`` where none is set."""
        return int(getattr(self, phase)) or otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorSection:
    """The coordinator's part in a deployed run: its key, its connection, its retries."""

    key: str = ""
    """The coordinator's private key file (`fedwinnow keys`); "" in a simulation."""
    connection: str = ""
    """Name of the SuperLink connection in Flower's config.toml; "" takes its default."""
    attempts: int = 5
    """How often a run that Flower ended is submitted again, at least 1."""
    resends: int = 3
    """How often a request is sent again to a site whose node or agent failed, at least 0."""
    pause: float = 15.0
    """Pause before a run is submitted, or a request sent, again, seconds, at least 0."""
    patience: float = 600.0
    """Longest wait for the nodes of the members to come up, seconds, above 0."""

    def __post_init__(self) -> None:
        require_setting("coordinator.attempts", self.attempts, self.attempts >= 1, "at least 1")
        require_setting("coordinator.resends", self.resends, self.resends >= 0, "at least 0")
        require_setting("coordinator.pause", self.pause, self.pause >= 0, "at least 0")
        require_setting("coordinator.patience", self.patience, self.patience > 0, "above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSection:
    """One site of a deployed run, pinned by its public key."""

    name: str
    """Name of the site, as in its own site.toml."""
    key: str
    """The site's public key, as `fedwinnow site check` prints it."""
