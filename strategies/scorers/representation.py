"""Similarity of the response's representation to the clean anchors', the best over domains.

Score at checkpoint 0:  s_b = max_k cos(h_b, H_k), h_b the mean last hidden state over the body, H_k
its mean over the reference anchors of domain k; in [−1, 1]. The best domain counts, not the one
declared: what a silo calls its data decides nothing.

Reference:
    H. Ivison et al., Large-Scale Data Selection for Instruction Tuning (RDS+), 2025, section 3,
    https://arxiv.org/abs/2503.01807
"""

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.nouns import Trajectory
from fedwinnow.strategies.scorers.arithmetic import Arithmetic, column


def representation() -> Arithmetic:
    """Largest cosine of hidden states over domains; see the module."""
    return Arithmetic(
        name="representation",
        columns=frozenset({"representation"}),
        unit="cosine",
        formula=_formula,
    )


def _formula(trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
    found: Float[np.ndarray, " samples"] = column(trajectory[0], "representation").max(axis=1)
    return found
