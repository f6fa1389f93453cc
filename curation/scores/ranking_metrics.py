"""Measure how well scores rank: AUROC, its mean over groups, its standard error.

AUROC = P(score of a positive > score of a negative) + ½ P(equal), by the rank sum.

Own code on scipy's ranks, bit-equal at all sites; scikit-learn would be one more dependency.

Reference:
    J. Hanley, B. McNeil, The Meaning and Use of the Area under a ROC Curve, Radiology 143, 1982,
    https://doi.org/10.1148/radiology.143.1.7063747
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from fedwinnow.curation.errors import NonFiniteError, RunError


def auroc(scores: Float[np.ndarray, " samples"], positive: Bool[np.ndarray, " samples"]) -> float:
    """Return the area under the ROC curve, in [0, 1]; ½ where scores say nothing.

    Raises:
        RunError: only one class is there.
        NonFiniteError: a score is NaN.
    """
    hits = int(positive.sum())
    misses = len(positive) - hits
    if hits == 0 or misses == 0:
        message = f"AUROC needs both classes; got {hits} positive and {misses} negative samples"
        raise RunError(message)
    if np.isnan(scores).any():
        message = "AUROC of a NaN score is not defined; leave out samples without a score"
        raise NonFiniteError(message)
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


def auroc_within(
    scores: Float[np.ndarray, " samples"],
    positive: Bool[np.ndarray, " samples"],
    groups: Sequence[str],
) -> float | None:
    """Return the mean AUROC over the groups that hold both classes; None where no group does."""
    labels = np.array(groups)
    found = [
        auroc(scores[labels == group], positive[labels == group])
        for group in sorted(set(groups))
        if 0 < positive[labels == group].sum() < (labels == group).sum()
    ]
    return float(np.mean(found)) if found else None


def standard_error(area: float, positive: int, negative: int) -> float:
    """Return an AUROC's standard error from class sizes (Hanley and McNeil, equations 1 and 2)."""
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (
        area * (1 - area) + (positive - 1) * (first - area**2) + (negative - 1) * (second - area**2)
    ) / (positive * negative)
    return float(np.sqrt(max(variance, 0.0)))
