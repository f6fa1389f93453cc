"""Merge score summaries, put a threshold on the grid, and note the evidence for it.

Every decision gives ``kept_share``, the share of private samples at or above (from the histogram);
``expected_recall`` and ``corrupted_pass``, the share of clean and of corrupted public rows at or
above; and ``rank_error``, the bound of the histogram. Where all public scores are equal there
is nothing to rank by: everything is kept, whatever the rule, and ``inseparable`` is 1.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import PublicScores, ScoreSummary, ThresholdDecision
from fedwinnow.curation.errors import EmptySummaryError
from fedwinnow.curation.scores.histogram import merge_summaries, rank_error_bound, share_above
from fedwinnow.curation.scores.histogram_edges import snap_to_grid

Summaries = Mapping[str, ScoreSummary]


def pool_summaries(summaries: Summaries) -> ScoreSummary:
    """Add up all sites' summaries, in order of name.

    Raises:
        EmptySummaryError: no site sent one, or none holds a sample.
        ProtocolError: their edges differ.
    """
    total = merge_summaries(summaries[site] for site in sorted(summaries))
    if total.total <= 0:
        message = (
            f"threshold: expected scored samples, got 0 from {len(summaries)} sites "
            f"({', '.join(sorted(summaries))}); look at why their samples have no score"
        )
        raise EmptySummaryError(message)
    return total


def decide_threshold(
    value: float,
    summaries: Summaries,
    public: PublicScores,
    evidence: Mapping[str, float] | None = None,
) -> ThresholdDecision:
    """Return a decision on the grid, never above ``value``, with the evidence all rules share.

    Raises:
        EmptySummaryError: no site contributed a score.
    """
    total = pool_summaries(summaries)
    clean, corrupted = public_scores_of(public, clean=True), public_scores_of(public, clean=False)
    known = np.concatenate([clean, corrupted])
    constant = len(known) > 0 and bool((known == known[0]).all())
    threshold = float("-inf") if constant else snap_to_grid(value, total.edges)
    found = {
        "kept_share": share_above(total, threshold),
        "rank_error": rank_error_bound(total, threshold) if np.isfinite(threshold) else 0.0,
    }
    if len(clean):
        found["expected_recall"] = float((clean >= threshold).mean())
    if len(corrupted):
        found["corrupted_pass"] = float((corrupted >= threshold).mean())
    found |= {"inseparable": 1.0} if constant else {}
    return ThresholdDecision(value=threshold, evidence=found | dict(evidence or {}))


def public_scores_of(public: PublicScores, *, clean: bool) -> Float[np.ndarray, " rows"]:
    """Return the scores of the clean or of the corrupted public rows, without NaN."""
    wanted = np.array([(kind == "clean") == clean for kind in public.kinds], dtype=bool)
    found: Float[np.ndarray, " rows"] = public.scores[wanted & ~np.isnan(public.scores)]
    return found.astype(np.float64)


def clean_scores(public: PublicScores, rule: str, *, least: int = 1) -> Float[np.ndarray, " rows"]:
    """Return the scores of the clean public rows.

    Raises:
        EmptySummaryError: there are fewer than ``least``.
    """
    clean = public_scores_of(public, clean=True)
    if len(clean) < least:
        message = (
            f"threshold {rule!r}: expected at least {least} clean public rows with a score, got "
            f"{len(clean)}; add anchors or raise anchors.calibration"
        )
        raise EmptySummaryError(message)
    return clean


def check_share(name: str, share: float) -> None:
    """Refuse a share outside (0, 1].

    Raises:
        ValueError: the share is outside (0, 1].
    """
    if not 0 < share <= 1:
        message = f"{name} = {share} is out of range; allowed: in (0, 1]"
        raise ValueError(message)
