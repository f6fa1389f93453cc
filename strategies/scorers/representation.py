"""Score by the representation's similarity to clean anchors' less that to corrupted ones'.

Score at checkpoint 0:  s_b = max_k (cos(h_b, H_k) − cos(h_b, C_k)), h_b the mean last hidden state
over the body, H_k its mean over the reference anchors of domain k, C_k that over their seeded
corruptions; in [−2, 2]. With ``contrast=False`` the second term is left out, as in the paper. The
best domain counts, not the one declared: what a silo calls its data decides nothing.

Reference:
    H. Ivison et al., Large-Scale Data Selection for Instruction Tuning (RDS+), 2025, section 3,
    https://arxiv.org/abs/2503.01807, for the similarity; the contrast is ours.
"""

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Trajectory
from fedwinnow.strategies.interfaces.formula_scorer import FormulaScorer, column


def representation(*, contrast: bool = True) -> FormulaScorer:
    """Make the scorer.

    Args:
        contrast: Whether the similarity to corrupted anchors is subtracted.
    """
    return FormulaScorer(
        name="representation",
        columns=frozenset({"representation", *(("representation_corrupted",) * contrast)}),
        unit="cosine",
        formula=_contrast if contrast else _similarity,
    )


def _similarity(trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
    found: Float[np.ndarray, " samples"] = column(trajectory[0], "representation").max(axis=1)
    return found


def _contrast(trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
    first = trajectory[0]
    apart = column(first, "representation") - column(first, "representation_corrupted")
    found: Float[np.ndarray, " samples"] = apart.max(axis=1)
    return found
