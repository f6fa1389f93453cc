"""The default: keep a stated share of the clean samples, and say what passes besides.

The cut is a split-conformal one: with n clean public scores from held-out folds,

    τ = s_(k), k = ⌊(1 − recall) · (n + 1)⌋, and −∞ where k = 0,

so a new clean sample passes with probability at least ``recall``, on average over anchors. The clean
share π of the private samples is estimated from the SUMMED private histogram as a mixture
π f_clean + (1 − π) f_corrupted of the public densities (EM on coarse cells), and corrects the prior:

    expected precision = π R_clean(τ) / (π R_clean(τ) + (1 − π) R_corrupted(τ)).

Where clean and corrupted public rows cannot be told apart (AUROC less than two standard errors above
one half), nothing is cut: ``inseparable`` is 1.

References:
    V. Vovk et al., Algorithmic Learning in a Random World, 2005, chapter 4,
    https://doi.org/10.1007/b106715
    M. Saerens et al., Adjusting the Outputs of a Classifier to New a Priori Probabilities, Neural
    Computation 14, 2002, section 2.2, https://doi.org/10.1162/089976602753284446
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from scipy.stats import beta

from fedwinnow.curation.nouns import PublicScores, ScoreSummary, ThresholdDecision
from fedwinnow.curation.protocols import Threshold
from fedwinnow.curation.ranking import auroc, standard_error
from fedwinnow.curation.summary import share_above
from fedwinnow.strategies.thresholds.deciding import check_share, clean_scores, decide, pooled

CELLS = 8
"""Coarse cells of the mixture, equally full of public rows."""
_STEPS = 500
_LEAST = 1e-9


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
        corrupted = public.scores[np.array([kind != "clean" for kind in public.kinds], dtype=bool)]
        if _inseparable(clean, corrupted):
            return decide(float("-inf"), summaries, public, {"inseparable": 1.0})
        place = int(np.floor((1 - recall) * (len(clean) + 1) + _LEAST))
        cut = float(clean[place - 1]) if place > 0 else float("-inf")
        decision = decide(cut, summaries, public)
        evidence = dict(decision.evidence) | {"inseparable": 0.0}
        evidence |= _recall_interval(place, len(clean))
        evidence |= _mixture(pooled(summaries), clean, corrupted, decision.value)
        return ThresholdDecision(value=decision.value, evidence=evidence)

    return rule


def clean_share(
    summary: ScoreSummary, clean: Float[np.ndarray, " a"], corrupted: Float[np.ndarray, " b"]
) -> float:
    """π of the mixture that fits the private histogram best, by EM from one half.

    Cells get half a row of each class beforehand, so that an empty one rules nothing out.
    """
    both = np.concatenate([clean, corrupted])
    inner = np.unique(np.quantile(both, np.arange(1, CELLS) / CELLS))
    private = np.diff([0.0, *(1 - share_above(summary, float(cut)) for cut in inner), 1.0])
    densities = []
    for scores in (clean, corrupted):
        counts = np.bincount(np.searchsorted(inner, scores, side="right"), minlength=len(inner) + 1)
        densities.append((counts + 0.5) / (counts + 0.5).sum())
    good, bad = densities
    share = 0.5
    for _ in range(_STEPS):
        posterior = share * good / (share * good + (1 - share) * bad)
        share = float((private * posterior).sum())
    return min(1.0, max(0.0, share))


def _inseparable(clean: Float[np.ndarray, " a"], corrupted: Float[np.ndarray, " b"]) -> bool:
    if len(corrupted) == 0:
        return False
    scores = np.concatenate([clean, corrupted])
    area = auroc(scores, np.arange(len(scores)) < len(clean))
    return area - 2 * standard_error(area, len(clean), len(corrupted)) <= 0.5  # noqa: PLR2004 - chance


def _recall_interval(place: int, number: int) -> dict[str, float]:
    """95 % interval of the recall: of n exchangeable scores, Beta(n + 1 − k, k) pass above s_(k)."""
    if place == 0:
        return {"recall_low": 1.0, "recall_high": 1.0}
    low, high = beta.ppf([0.025, 0.975], number + 1 - place, place)
    return {"recall_low": float(low), "recall_high": float(high)}


def _mixture(
    summary: ScoreSummary,
    clean: Float[np.ndarray, " a"],
    corrupted: Float[np.ndarray, " b"],
    threshold: float,
) -> dict[str, float]:
    if len(corrupted) == 0 or summary.total <= 0:
        return {}
    share = clean_share(summary, clean, corrupted)
    good = share * float((clean >= threshold).mean())
    bad = (1 - share) * float((corrupted >= threshold).mean())
    found = {"clean_share": share}
    if good + bad > 0:
        found["expected_precision"] = good / (good + bad)
    return found
