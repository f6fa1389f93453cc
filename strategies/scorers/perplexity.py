"""Score by the likelihood of the response: an easy sample scores high.

Score of sample b at checkpoint 0:  s_b = (1/T_b) Σ_t log p(y_t | x, y_<t) = −loss, over the T_b
body tokens, in nats per token; perplexity is exp(−s_b), so the two rank alike.

Reference:
    M. Marion et al., When Less is More: Investigating Data Pruning for Pretraining LLMs at Scale,
    2023, section 2.1, https://arxiv.org/abs/2309.04564
"""

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Trajectory
from fedwinnow.strategies.interfaces.formula_scorer import FormulaScorer, column


def perplexity() -> FormulaScorer:
    """Make the scorer: negative mean token loss; see the module."""
    return FormulaScorer(
        name="perplexity", columns=frozenset({"loss"}), unit="nats", formula=_formula
    )


def _formula(trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
    return -column(trajectory[0], "loss")
