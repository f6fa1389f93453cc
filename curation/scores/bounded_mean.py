"""Release a mean of losses on a grid so coarse that one sample moves it by at most one step.

Losses are clamped into [0, cap]; what is no finite number counts as cap. With c samples (at most
the n that there are), the step of the grid is the power of two

    g = 2^⌈log2(cap / c)⌉ ≥ cap / c,

and the mean is rounded to the nearest multiple of g. Another value in one sample's place moves the
mean by at most cap / n ≤ g, so the released number by at most one step. All sums are of whole
numbers, so no rounding error tells of the samples; a mean is a multiple of a power of two, so its
product with a count is exact.
"""

import math

import numpy as np
from jaxtyping import Float

_PARTS = 2**20
"""Parts of a step that a loss is cut into before losses are summed."""


def clamp_losses(
    losses: Float[np.ndarray, " samples"], cap: float
) -> Float[np.ndarray, " samples"]:
    """Return the losses within [0, cap]; what is NaN or infinite counts as cap."""
    finite = np.where(np.isfinite(losses), losses, cap)
    return np.clip(finite, 0.0, cap)


def grid_step(cap: float, count: int) -> float:
    """Return the step of the grid, a power of two of at least cap / count, nats."""
    return float(2.0 ** math.ceil(math.log2(cap / count)))


def bounded_mean(losses: Float[np.ndarray, " samples"], *, cap: float, count: int) -> float:
    """Return the mean of clamped losses as a multiple of the grid's step, nats.

    Args:
        losses: One for each sample, float64, at least one; NaN and infinities count as ``cap``.
        cap: Largest loss that counts, above 0: ln(vocabulary), the loss of a uniform guess.
        count: Samples that fix the grid, from 1 to the number of losses: a rounded number, as the
            grid shows it.
    """
    step = grid_step(cap, count)
    parts = np.floor(clamp_losses(losses, cap) / step * _PARTS).astype(np.int64)
    number, total = len(losses), sum(int(part) for part in parts)
    return (2 * total + number * _PARTS) // (2 * number * _PARTS) * step
