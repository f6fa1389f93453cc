"""What threshold rules share: merge the summaries, put the number on the grid, note the evidence."""

from collections.abc import Mapping

import numpy as np

from fedwinnow.curation.errors import EmptySummaryError
from fedwinnow.curation.nouns import PublicScores, ScoreSummary, ThresholdDecision
from fedwinnow.curation.summary import merge, rank_error_bound, share_above, snap

Summaries = Mapping[str, ScoreSummary]


def pooled(summaries: Summaries) -> ScoreSummary:
    """All sites' summaries added up, in order of name.

    Raises:
        EmptySummaryError: no site sent one.
    """
    return merge(summaries[site] for site in sorted(summaries))


def decide(
    value: float,
    summaries: Summaries,
    public: PublicScores,
    evidence: Mapping[str, float] | None = None,
) -> ThresholdDecision:
    """A decision on the grid, with what can be said of any threshold.

    ``kept_share`` of the private samples (from the histogram), ``expected_recall``: share of clean
    public rows at or above, ``corrupted_pass``: the same of corrupted ones, ``rank_error``: bound by
    the fullest run of cells.
    """
    total = pooled(summaries)
    threshold = snap(value, total.edges)
    clean = public.clean
    corrupted = public.scores[np.array([kind != "clean" for kind in public.kinds], dtype=bool)]
    found = {"kept_share": share_above(total, threshold), "rank_error": rank_error_bound(total)}
    if len(clean):
        found["expected_recall"] = float((clean >= threshold).mean())
    if len(corrupted):
        found["corrupted_pass"] = float((corrupted >= threshold).mean())
    return ThresholdDecision(value=threshold, evidence=found | dict(evidence or {}))


def clean_scores(public: PublicScores, rule: str) -> np.ndarray:
    """Scores of the clean public rows.

    Raises:
        EmptySummaryError: there is none.
    """
    clean = public.clean
    if len(clean) == 0:
        message = f"threshold {rule!r} needs clean public rows; add calibration anchors"
        raise EmptySummaryError(message)
    return clean


def check_share(name: str, share: float) -> None:
    """Refuse a share outside (0, 1]."""
    if not 0 < share <= 1:
        message = f"{name} must lie in (0, 1], got {share}"
        raise ValueError(message)
