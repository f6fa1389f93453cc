"""A merging rule: the one site's adapter that lies nearest to all others.

The site i with the smallest Σ_j p_j ‖ΔW_i − ΔW_j‖, norms over all modules and on the products
B A, so that another basis of the same update changes nothing. No average: one far adapter cannot
pull it, as long as the others weigh more than half.

Reference:
    L. Kaufman, P. J. Rousseeuw, Finding Groups in Data, 1990, chapter 2 (medoids),
    https://doi.org/10.1002/9780470316801.ch2
"""

import math
from collections.abc import Mapping

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters import checks
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.strategies.interfaces.merging import Merged, Merging


def medoid() -> Merging:
    """Choose the middle adapter; of two alike, the first by name.

    Report: ``distance`` (its weighted mean distance from the others) and ``rank`` (largest).
    """
    return _merge


def _merge(
    adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
) -> Merged:
    checks.check_compatible(adapters, previous)  # bases, modules, shapes, and no NaN
    shares = checks.normalise_weights(
        adapters, weights
    )  # in order of name; sites of weight 0 left out
    far = {
        site: math.fsum(
            share * _apart(adapters[site], adapters[other]) for other, share in shares.items()
        )
        for site in shares
    }
    chosen = min(far, key=lambda site: (far[site], site))
    merged = adapters[chosen]
    rank = max(factor.shape[0] for factor in merged.a.values())
    return Merged(adapter=merged, report={"distance": far[chosen], "rank": float(rank)})


def _apart(one: Adapter, other: Adapter) -> float:
    """‖ΔW_1 − ΔW_2‖ over all modules, from small cores: no matrix is formed."""
    return math.hypot(
        *(
            maths.norm(maths.sum_products([maths.delta(one, name), maths.delta(other, name, -1.0)]))
            for name in one.modules
        )
    )
