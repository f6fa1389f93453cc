"""Compute intervals for differences of paired measurements by the bootstrap.

Reference:
    B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13 (percentile
    interval), https://doi.org/10.1201/9780429246593
    A. Owen, The Pigeonhole Bootstrap, Annals of Applied Statistics 1, 2007 (rows and columns
    resampled apart), https://doi.org/10.1214/07-AOAS122
"""

import numpy as np
from jaxtyping import Float
from scipy import stats

_AT_ONCE = 1000


def paired_bootstrap(
    a: Float[np.ndarray, " items"],
    b: Float[np.ndarray, " _"],
    *,
    seed: int,
    resamples: int = 10_000,
) -> tuple[float, float, float]:
    """Return the mean of a − b over items, and its 95 % percentile interval over resampled items.

    Args:
        a: One measurement per item.
        b: Another of the same items in the same order.
        seed: Seed of the resampling.
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
    mean = float(difference.mean())
    if len(difference) == 1:  # scipy wants two items; one item is its own interval
        return mean, mean, mean
    interval = stats.bootstrap(
        (difference,),
        np.mean,
        n_resamples=resamples,
        batch=_AT_ONCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return mean, float(interval.low), float(interval.high)


def crossed_bootstrap(
    differences: Float[np.ndarray, "seeds items"], *, seed: int, resamples: int = 2000
) -> tuple[float, float, float]:
    """Return the mean of paired differences, and its 95 % interval over resampled seeds and items.

    An item is the same in every seed, so it is drawn once for all of them. With one seed only
    items are resampled; two or three tell little of how seeds differ.

    Args:
        differences: a − b; NaN where a seed has not measured an item.
        seed: Seed of the resampling.
        resamples: Resampled tables, at least 1.

    Returns:
        (mean, low, high).

    Raises:
        ValueError: there is no difference.
    """
    there = ~np.isnan(differences)
    if not there.any():
        message = f"paired differences are needed, got none in a table of {differences.shape}"
        raise ValueError(message)
    random, filled = np.random.default_rng(seed), np.where(there, differences, 0.0)
    rows, columns = (_draws(random, resamples, number) for number in differences.shape)
    sums = ((rows @ filled) * columns).sum(axis=1)
    counts = ((rows @ there.astype(np.float64)) * columns).sum(axis=1)
    means = sums[counts > 0] / counts[counts > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(filled.sum() / there.sum()), float(low), float(high)


def _draws(
    random: np.random.Generator, resamples: int, number: int
) -> Float[np.ndarray, "resamples number"]:
    """Return how often each of ``number`` things is drawn in ``number`` draws with replacement."""
    drawn = random.integers(0, number, size=(resamples, number))
    flat = (drawn + number * np.arange(resamples)[:, None]).ravel()
    counts = np.bincount(flat, minlength=resamples * number).astype(np.float64)
    return counts.reshape(resamples, number)
