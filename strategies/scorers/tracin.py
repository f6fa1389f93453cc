"""Score by the loss drop of the anchors that one step on the sample would bring (TracIn).

Score:  s_b = Σ_t η_t · (1/K) Σ_k ⟨g_b, G_k⟩ over checkpoints t ≥ 1 and the K domains' mean
reference gradients, η_t the mean learning rate that led to t.

Reference:
    G. Pruthi et al., Estimating Training Data Influence by Tracing Gradient Descent, NeurIPS 2020,
    section 3.2, https://arxiv.org/abs/2002.08484
"""

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Trajectory
from fedwinnow.strategies.interfaces.formula_scorer import (
    FormulaScorer,
    column,
    trained_checkpoints,
)


def tracin() -> FormulaScorer:
    """Make the scorer: sum over checkpoints of rate times dot; see the module."""
    return FormulaScorer(name="tracin", columns=frozenset({"dot"}), unit="nats", formula=_formula)


def _formula(trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
    tables = trained_checkpoints(trajectory, "tracin")
    found: Float[np.ndarray, " samples"] = np.sum(
        [table.learning_rate * column(table, "dot").mean(axis=1) for table in tables], axis=0
    )
    return found
