"""Score by influence on the anchors' loss, by an inverse damped Fisher matrix in closed form.

Score at the last checkpoint:  s_b = (1/K) Σ_k Σ_l ⟨g_b,l, H_l⁻¹ G_k,l⟩ over factors l, with
H_l⁻¹ ≈ (1/n) Σ_i (g_i g_iᵀ + λ_l I)⁻¹ (``client/measuring/datainf.py``); higher helps the anchors
more.

Differs from the DataInf paper: the g_i behind H are the public reference anchors', not the training
set's.

Reference:
    Y. Kwon et al., DataInf: Efficiently Estimating Data Influence in LoRA-tuned LLMs and Diffusion
    Models, ICLR 2024, section 3, https://arxiv.org/abs/2310.00902
"""

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Trajectory
from fedwinnow.strategies.interfaces.formula_scorer import (
    FormulaScorer,
    column,
    trained_checkpoints,
)


def datainf() -> FormulaScorer:
    """Make the scorer: mean influence over domains; see the module."""
    return FormulaScorer(
        name="datainf", columns=frozenset({"influence"}), unit="nats", formula=_formula
    )


def _formula(trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
    last = trained_checkpoints(trajectory, "datainf")[-1]
    found: Float[np.ndarray, " samples"] = column(last, "influence").mean(axis=1)
    return found
