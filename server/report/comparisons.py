"""Comparisons that a run's record holds: of arms, and of scorers against planted truth."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean difference with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """Return the mean with its interval in brackets: signed, four digits."""
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmDifference(Interval):
    """Evaluation loss of an arm minus the reference arm's, nats per token, paired over items."""

    reference: str
    """Arm that is subtracted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerFigures:
    """Figures of one scorer against the planted truth; shares and AUROCs in [0, 1]."""

    auroc: float
    """Clean against corrupted, all sites together."""
    auroc_within: float | None
    """Mean of the sites' own AUROCs; None where no site holds both."""
    precision: float
    """Share of the kept samples that is clean."""
    recall: float
    """Share of the clean samples that is kept."""
    accuracy: float
    f1: float
    auroc_by_corruption: Mapping[str, float]
    """Kind of corruption → AUROC of clean samples against that kind."""
    recall_by_site: Mapping[str, float]
    """Site with clean samples → share of them that is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionFigures(ScorerFigures):
    """Figures of the run's scorer, and of others that keep as many samples over all sites."""

    comparison: Mapping[str, ScorerFigures]
    """Comparison scorer → its figures."""
