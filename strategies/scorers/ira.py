"""Score by instruction-response alignment: how much of the response the prompt explains.

Score at checkpoint 0:  s_b = ℓ_b(y) − ℓ_b(y | x), unconditional minus conditional mean loss of the
same body tokens, in nats.

Reference:
    Y. Du et al., FedDQC, Findings of ACL 2025, section 3.2, https://arxiv.org/abs/2410.11540
"""

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Trajectory
from fedwinnow.strategies.interfaces.formula_scorer import FormulaScorer, column


def ira() -> FormulaScorer:
    """Make the scorer: loss drop by the prompt; see the module."""
    return FormulaScorer(
        name="ira", columns=frozenset({"loss", "unconditional_loss"}), unit="nats", formula=_formula
    )


def _formula(trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
    found: Float[np.ndarray, " samples"] = column(trajectory[0], "unconditional_loss") - column(
        trajectory[0], "loss"
    )
    return found
