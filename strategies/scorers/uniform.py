"""Score by a hash of the sample's id, uniform in [0, 1), which says nothing: a control."""

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Trajectory
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.strategies.interfaces.formula_scorer import FormulaScorer


def uniform() -> FormulaScorer:
    """Make the scorer: hash of the id; see the module."""
    return FormulaScorer(name="uniform", columns=frozenset(), unit="share", formula=_formula)


def _formula(trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
    return np.array(
        [derive_seed(0, "uniform", one) / 2**63 for one in trajectory[0].ids], dtype=np.float64
    ).reshape(len(trajectory[0].ids))
