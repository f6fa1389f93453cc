"""Keep a stated share of the clean samples, and report what else passes (the default).

The cut is a split-conformal one: with n clean public scores, from held-out folds where the scorer
is fitted, in ascending order,

    τ = s_(k), k = ⌊(1 − recall) · (n + 1)⌋, and −∞ where k = 0 (too few anchors for any cut),

so a new clean sample passes with probability (n + 1 − k) / (n + 1) ≥ recall on average over
anchors; given these anchors, the recall is a draw of Beta(n + 1 − k, k), and its 95 % interval is
reported. On the grid the cut can only be lower. The clean share π of the private samples is
estimated from the SUMMED private histogram N_j on coarse cells as a mixture of the public densities
C (clean) and B (corrupted), by expectation maximisation with the prior Beta(3/2, 3/2):

    π ← (½ + Σ_j N_j π C_j / (π C_j + (1 − π) B_j)) / (1 + Σ_j N_j)

and corrects the prior of what passes: precision = π R / (π R + (1 − π) P), with R and P the shares
of clean and corrupted rows at or above τ; the posterior at τ is that of its coarse cell,
π C_j / (π C_j + (1 − π) B_j).

Where clean and corrupted public rows can hardly be told apart, or not at all (AUROC less two
standard errors at most 0.55), nothing is cut: ``inseparable`` is 1.

Reference:
    V. Vovk et al., Algorithmic Learning in a Random World, 2005, chapter 4,
    https://doi.org/10.1007/b106715
    M. Saerens et al., Adjusting the Outputs of a Classifier to New a Priori Probabilities, Neural
    Computation 14, 2002, section 2.2, https://doi.org/10.1162/089976602753284446
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import beta

from fedwinnow.curation.datatypes import PublicScores, ScoreSummary, ThresholdDecision
from fedwinnow.curation.scores.histogram import share_above
from fedwinnow.curation.scores.ranking_metrics import auroc, standard_error
from fedwinnow.strategies.interfaces.threshold import Threshold
from fedwinnow.strategies.maths.threshold_evidence import (
    check_share,
    clean_scores,
    decide_threshold,
    pool_summaries,
    public_scores_of,
)

CELLS = 8
"""Coarse cells of the mixture, equally full of public rows."""
NEARLY = 0.55
"""AUROC that the lower end of the interval must exceed before anything is cut."""
_STEPS = 1000
_LEAST = 1e-9

_Clean = Float[np.ndarray, " clean"]
_Corrupted = Float[np.ndarray, " corrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Private histogram as a mixture of the public densities."""

    share: float
    """π, estimated share of clean private samples, in (0, 1)."""
    error: float
    """Standard error of π by the private counts; the public densities are taken as known."""
    inner: Float[np.ndarray, " cuts"]
    """Borders between the coarse cells."""
    posterior: Float[np.ndarray, " cells"]
    """Probability that a private sample of the cell is clean."""


def target_recall(*, recall: float = 0.9) -> Threshold:
    """Make the rule; see the module.

    Args:
        recall: Share of clean samples to keep, in (0, 1].

    Raises:
        ValueError: the share is out of range.
    """
    check_share("recall", recall)

    def rule(summaries: Mapping[str, ScoreSummary], public: PublicScores) -> ThresholdDecision:
        clean = np.sort(clean_scores(public, "target_recall"))
        corrupted = public_scores_of(public, clean=False)
        found = {"clean_rows": float(len(clean)), "corrupted_rows": float(len(corrupted))}
        apart = _apart(clean, corrupted)
        found["inseparable"] = float(not apart)
        place = int(np.floor((1 - recall) * (len(clean) + 1) + _LEAST)) if apart else 0
        cut = float(clean[place - 1]) if place > 0 else float("-inf")
        decision = decide_threshold(cut, summaries, public)
        threshold = decision.value
        found |= _recall(clean, threshold, place)
        if apart:
            mixture = fit_mixture(pool_summaries(summaries), clean, corrupted)
            found |= _consequences(mixture, threshold, found["expected_recall"], corrupted)
        return ThresholdDecision(value=threshold, evidence=dict(decision.evidence) | found)

    return rule


def fit_mixture(summary: ScoreSummary, clean: _Clean, corrupted: _Corrupted) -> Mixture:
    """Fit π to the private histogram, from one half, in a fixed number of steps.

    One public row of each class is spread over the cells beforehand, so that an empty
    cell rules nothing out.

    Args:
        summary: Histogram of the private scores, summed over sites.
        clean: Scores of clean public rows, at least one.
        corrupted: Scores of corrupted public rows, at least one.
    """
    both = np.concatenate([clean, corrupted])
    inner = np.unique(np.quantile(both, np.arange(1, CELLS) / CELLS))
    below = [0.0, *(1 - share_above(summary, float(cut)) for cut in inner), 1.0]
    private = np.maximum(np.diff(below), 0.0) * summary.total
    good, bad = (_density(scores, inner) for scores in (clean, corrupted))
    share, posterior = 0.5, good
    for _ in range(_STEPS):
        posterior = share * good / (share * good + (1 - share) * bad)
        share = float((0.5 + private @ posterior) / (1 + private.sum()))
    slope = (good - bad) / (share * good + (1 - share) * bad)
    information = float(private @ slope**2) + 0.5 / share**2 + 0.5 / (1 - share) ** 2
    return Mixture(
        share=share, error=float(information**-0.5), inner=inner, posterior=np.asarray(posterior)
    )


def _density(
    scores: Float[np.ndarray, " rows"], inner: Float[np.ndarray, " cuts"]
) -> Float[np.ndarray, " cells"]:
    cells = np.searchsorted(inner, scores, side="right")
    counts = np.bincount(cells, minlength=len(inner) + 1) + 1 / (len(inner) + 1)
    return np.asarray(counts / counts.sum())


def _apart(clean: _Clean, corrupted: _Corrupted) -> bool:
    """Return whether the public rows show that the scorer tells clean from corrupted."""
    if len(corrupted) == 0:
        return False
    scores = np.concatenate([clean, corrupted])
    area = auroc(scores, np.arange(len(scores)) < len(clean))
    return area - 2 * standard_error(area, len(clean), len(corrupted)) > NEARLY


def _recall(clean: _Clean, threshold: float, place: int) -> dict[str, float]:
    """Return expected recall and its 95 % interval; ``place`` − 1 clean rows lie below the cut."""
    if place == 0 or not np.isfinite(threshold):
        return {"expected_recall": 1.0, "recall_low": 1.0, "recall_high": 1.0}
    number = len(clean)
    low, high = beta.ppf([0.025, 0.975], number + 1 - place, place)
    return {
        "expected_recall": (number + 1 - place) / (number + 1),
        "recall_low": float(low),
        "recall_high": float(high),
    }


def _consequences(
    mixture: Mixture, threshold: float, recall: float, corrupted: _Corrupted
) -> dict[str, float]:
    """Return what follows from the cut at the estimated clean share: precision, share kept."""
    passed = (float((corrupted >= threshold).sum()) + 0.5) / (len(corrupted) + 1)
    if not np.isfinite(threshold):
        passed = 1.0
    good, bad = mixture.share * recall, (1 - mixture.share) * passed
    found = {
        "clean_share": mixture.share,
        "clean_share_error": mixture.error,
        "expected_precision": good / (good + bad),
        "expected_kept": good + bad,
    }
    if np.isfinite(threshold):
        cell = int(np.searchsorted(mixture.inner, threshold, side="right"))
        found["posterior_at_threshold"] = float(mixture.posterior[cell])
    return found
