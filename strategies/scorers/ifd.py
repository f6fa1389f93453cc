"""Score by negative instruction-following difficulty: an answer that fits its prompt scores high.

Score at checkpoint 0:  s_b = −ℓ_b(y | x) / ℓ_b(y), conditional over unconditional mean loss of the
same body tokens, without unit.

Differs from the paper: it selects hard samples (high IFD below 1); as a detector of bad answers low
IFD is good, which is how CLUES and FedDQC compare it.

Reference:
    M. Li et al., From Quantity to Quality, NAACL 2024, section 2.2, https://arxiv.org/abs/2308.12032
"""

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Trajectory
from fedwinnow.strategies.interfaces.formula_scorer import FormulaScorer, column


def ifd() -> FormulaScorer:
    """Make the scorer: negative ratio of conditional to unconditional loss; see the module."""
    return FormulaScorer(
        name="ifd",
        columns=frozenset({"loss", "unconditional_loss"}),
        unit="ratio",
        formula=_formula,
    )


def _formula(trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
    found: Float[np.ndarray, " samples"] = -column(trajectory[0], "loss") / column(
        trajectory[0], "unconditional_loss"
    )
    return found
