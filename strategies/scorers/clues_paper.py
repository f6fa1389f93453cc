"""Score by CLUES as printed: Adam's step on both sides of the dot product.

Score:  s_b = Σ_t η_t · (1/K) Σ_k ⟨Γ(g_b), Γ(G_k)⟩ over checkpoints t ≥ 1; Γ: one virtual Adam step.

Both sides hold mostly the shared momentum (weight 0.9), so the product says little of the sample.
The published code leaves Γ off one side: that is ``clues``. Moments are as in ``clues``.

Reference:
    Z. Zhao et al., CLUES: Collaborative Private-domain High-quality Data Selection for LLMs via
    Training Dynamics, NeurIPS 2024, section 3.2, https://arxiv.org/abs/2507.03004
"""

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Trajectory
from fedwinnow.strategies.interfaces.formula_scorer import (
    FormulaScorer,
    column,
    trained_checkpoints,
)


def clues_paper() -> FormulaScorer:
    """Make the scorer: sum over checkpoints of rate times dot of Adam steps; see the module."""
    return FormulaScorer(
        name="clues_paper", columns=frozenset({"adam_adam_dot"}), unit="nats", formula=_formula
    )


def _formula(trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
    tables = trained_checkpoints(trajectory, "clues_paper")
    found: Float[np.ndarray, " samples"] = np.sum(
        [table.learning_rate * column(table, "adam_adam_dot").mean(axis=1) for table in tables],
        axis=0,
    )
    return found
