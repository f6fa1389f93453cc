"""Score by the Adam-aware cosine with the reference gradients, best over domains (LESS).

Score:  s_b = max_k Σ_t w_t ⟨Γ(g_b), G_k⟩ / (‖Γ(g_b)‖ ‖G_k‖), w_t the share of the learning rate of
checkpoint t ≥ 1; in [−1, 1].

Differs from the paper: no random projection (products are exact), moments of the public reference
anchors instead of the training run, and each domain's reference gradients are averaged before they
are set to unit length, not after.

Reference:
    M. Xia et al., LESS: Selecting Influential Data for Targeted Instruction Tuning, ICML 2024,
    sections 3.2 and 4, https://arxiv.org/abs/2402.04333
"""

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Trajectory
from fedwinnow.strategies.interfaces.formula_scorer import (
    FormulaScorer,
    rate_shares,
    reference_cosines,
    trained_checkpoints,
)


def less() -> FormulaScorer:
    """Make the scorer: largest Adam-aware cosine over domains; see the module."""
    return FormulaScorer(
        name="less", columns=frozenset({"adam_dot", "adam_norm"}), unit="cosine", formula=_formula
    )


def _formula(trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
    tables = trained_checkpoints(trajectory, "less")
    shares = rate_shares(tables)
    parts = [
        w * reference_cosines(t, "adam_dot", "adam_norm")
        for w, t in zip(shares, tables, strict=True)
    ]
    found: Float[np.ndarray, " samples"] = np.sum(parts, axis=0).max(axis=1)
    return found
