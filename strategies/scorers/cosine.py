"""Cosine of the sample's gradient with the reference gradients, the best over domains.

Score:  s_b = max_k Σ_t w_t ⟨g_b, G_k⟩ / (‖g_b‖ ‖G_k‖), w_t the share of the learning rate of
checkpoint t ≥ 1; in [−1, 1]. Unlike the plain dot it does not favour large gradients.

Reference:
    M. Xia et al., LESS, ICML 2024, section 3.3 on normalisation, https://arxiv.org/abs/2402.04333
"""

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.nouns import Trajectory
from fedwinnow.strategies.scorers.arithmetic import Arithmetic, cosines, later, rate_shares


def cosine() -> Arithmetic:
    """Largest cosine over domains; see the module."""
    return Arithmetic(
        name="cosine", columns=frozenset({"dot", "norm"}), unit="cosine", formula=_formula
    )


def _formula(trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
    tables = later(trajectory, "cosine")
    shares = rate_shares(tables)
    parts = [w * cosines(t, "dot", "norm") for w, t in zip(shares, tables, strict=True)]
    return np.sum(parts, axis=0).max(axis=1)
