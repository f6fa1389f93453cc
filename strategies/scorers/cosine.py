"""Score by the cosine of the sample's gradient with the mean reference gradient of all domains.

Score:  s_b = Σ_t w_t ⟨g_b, Ḡ⟩ / (‖g_b‖ ‖Ḡ‖), Ḡ = (1/K) Σ_k G_k, w_t the share of the learning rate
of checkpoint t ≥ 1; in [−1, 1]. ‖Ḡ‖² = (1/K²) Σ_kl ⟨G_k, G_l⟩ comes from the table's Gram matrix.
Unlike the plain dot it does not favour large gradients. A zero gradient scores 0.

Reference:
    M. Xia et al., LESS, ICML 2024, section 3.3 on normalisation, https://arxiv.org/abs/2402.04333
"""

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Trajectory
from fedwinnow.strategies.interfaces.formula_scorer import (
    FormulaScorer,
    column,
    rate_shares,
    trained_checkpoints,
)


def cosine() -> FormulaScorer:
    """Make the scorer: cosine with the mean over domains; see the module."""
    return FormulaScorer(
        name="cosine", columns=frozenset({"dot", "norm"}), unit="cosine", formula=_formula
    )


def _formula(trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
    tables = trained_checkpoints(trajectory, "cosine")
    found = np.zeros(len(tables[0].ids))
    for share, table in zip(rate_shares(tables), tables, strict=True):
        length = np.sqrt(max(float(table.reference_gram.mean()), 0.0))
        product = column(table, "norm") * length
        dot = column(table, "dot").mean(axis=1)
        found += share * np.divide(dot, product, out=np.zeros_like(dot), where=product > 0)
    return found
