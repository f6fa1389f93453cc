"""Score by the relative loss drop that warm-up brings, whether or not it trained on the sample.

Score:  s_b = (1/T) Σ_t (ℓ_0 − ℓ_t) / ℓ_0 over checkpoints t ≥ 1, ℓ the mean token loss of the body.

With ``warm_up.data = "anchors"`` the training holds public clean anchors alone: a sample whose loss
drops is like them. With ``"all"`` the sample was trained on itself, and noise is learned as well.

Reference:
    Reducible loss, the difference between the losses of two models:
    S. Mindermann et al., RHO-LOSS, ICML 2022, https://arxiv.org/abs/2206.07137, whose
    model of clean hold-out data is here the one after warm-up on the anchors.
"""

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Trajectory
from fedwinnow.strategies.interfaces.formula_scorer import (
    FormulaScorer,
    column,
    trained_checkpoints,
)

_TINY = 1e-12


def loss_drop() -> FormulaScorer:
    """Make the scorer: mean relative loss drop over checkpoints; see the module."""
    return FormulaScorer(
        name="loss_drop", columns=frozenset({"loss"}), unit="share", formula=_formula
    )


def _formula(trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
    before = column(trajectory[0], "loss")
    tables = trained_checkpoints(trajectory, "loss_drop")
    drops = [(before - column(table, "loss")) / np.maximum(before, _TINY) for table in tables]
    found: Float[np.ndarray, " samples"] = np.mean(drops, axis=0)
    return found
