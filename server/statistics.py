"""Intervals for differences of paired measurements.

Reference:
    B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13 (percentile
    interval), https://doi.org/10.1201/9780429246593
"""

import numpy as np
from jaxtyping import Float

_AT_ONCE = 1000


def paired_bootstrap(
    a: Float[np.ndarray, " items"],
    b: Float[np.ndarray, " items"],
    *,
    seed: int,
    resamples: int = 10_000,
) -> tuple[float, float, float]:
    """Mean of a − b over items, and its 95 % percentile interval over resampled items.

    Args:
        a: One measurement per item.
        b: Another of the same items in the same order.
        seed: Of the resampling.
        resamples: Resampled sets of items, at least 1.

    Returns:
        (mean, low, high).

    Raises:
        ValueError: there is no item, or the two differ in length.
    """
    if len(a) != len(b) or len(a) == 0:
        message = f"paired measurements of the same items are needed, got {len(a)} and {len(b)}"
        raise ValueError(message)
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    random = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, _AT_ONCE):
        number = min(_AT_ONCE, resamples - start)
        drawn = random.integers(0, len(difference), size=(number, len(difference)))
        means.append(difference[drawn].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(difference.mean()), float(low), float(high)
