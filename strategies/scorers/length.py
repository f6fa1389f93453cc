"""A control: longer responses score higher, s_b = T_b body tokens.

Published selectors often pick by length without knowing; a scorer that does not beat this one has
found nothing else.
"""

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Trajectory
from fedwinnow.strategies.interfaces.formula_scorer import Arithmetic, column


def length() -> Arithmetic:
    """Number of body tokens; see the module."""
    return Arithmetic(name="length", columns=frozenset({"length"}), unit="tokens", formula=_formula)


def _formula(trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
    return column(trajectory[0], "length")
