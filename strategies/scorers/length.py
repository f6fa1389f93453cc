"""Score by the length of the response, s_b = T_b body tokens: a control.

Published selectors often pick by length without knowing; a scorer that does not beat this one has
found nothing but length.
"""

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Trajectory
from fedwinnow.strategies.interfaces.formula_scorer import FormulaScorer, column


def length() -> FormulaScorer:
    """Make the scorer: number of body tokens; see the module."""
    return FormulaScorer(
        name="length", columns=frozenset({"length"}), unit="tokens", formula=_formula
    )


def _formula(trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
    return column(trajectory[0], "length")
