"""Check that two parties' numbers of the public rows agree, up to rounding errors.

Public rows are functions of (base, adapter, anchors, seeds) only. The server compares each site's
rows with the median over sites, and each site compares that median with its own rows: invented rows
would bend the scorer that is fitted on them towards a question about the site's samples.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import SignalTable

TOLERANCE = 1e-3
"""Largest difference between two parties' public numbers, as a share of the largest agreed one."""


def why_disagreeing(
    table: SignalTable,
    columns: Mapping[str, Float[np.ndarray, "rows ..."]],
    gram: Float[np.ndarray, "k k"],
) -> str:
    """Return why a party's public rows are too far from the agreed ones; "" where they are not.

    Args:
        table: One party's rows.
        columns: The agreed columns; ``table`` has each of them, in the same shape.
        gram: The agreed products of the references' gradients.
    """
    compared = [(name, table.columns[name], agreed) for name, agreed in columns.items()]
    for name, values, agreed in [*compared, ("gram", table.reference_gram, gram)]:
        apart = _distance(values, agreed)
        if not apart <= TOLERANCE:  # NaN is no agreement
            return f"public column {name} differs from the agreed one by {apart:.2g}"
    return ""


def _distance(
    values: Float[np.ndarray, "rows ..."], agreed: Float[np.ndarray, "rows ..."]
) -> float:
    scale = float(np.abs(agreed).max(initial=0.0))
    apart = float(np.abs(values - agreed).max(initial=0.0))
    return apart / scale if scale > 0 else apart
