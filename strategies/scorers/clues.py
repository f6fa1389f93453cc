"""Score by CLUES as its code computes it: an Adam-aware gradient dotted with the anchors' mean.

Score:  s_b = Σ_t η_t · (1/K) Σ_k ⟨Γ(g_b), G_k⟩ over checkpoints t ≥ 1; Γ is one virtual Adam step.

Differs from the paper, whose formula applies Γ to both sides, and which takes the moments of each
client's own training; ours come from the public reference anchors, so that scores of all sites
share one unit. ε stands outside the root and moments are bias-corrected.

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


def clues() -> FormulaScorer:
    """Make the scorer: sum over checkpoints of rate times Adam-aware dot; see the module."""
    return FormulaScorer(
        name="clues", columns=frozenset({"adam_dot"}), unit="nats", formula=_formula
    )


def _formula(trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
    tables = trained_checkpoints(trajectory, "clues")
    found: Float[np.ndarray, " samples"] = np.sum(
        [table.learning_rate * column(table, "adam_dot").mean(axis=1) for table in tables], axis=0
    )
    return found
