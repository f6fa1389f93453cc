"""Predict the loss of training on repeated pools of unequal quality: the law behind `budget`.

After N samples seen of n unique ones, with n_k = min(k · n, N) seen by the end of pass k:

    y(N) = a · n_1^b · Π_{k ≥ 2} (n_k / n_{k−1})^{b_k} + d,    b_k = b · (1/2)^{(k − 1) / τ}

A pool's utility is b ≤ 0 and its half-life τ, in passes; a and d are common to all pools, and d is
added last, as what cannot be learned must not shrink with repetition. In logarithms

    log((y − d) / a) = b · u_τ(N, n)
    u_τ = log n_1 + Σ_{k ≥ 2} (1/2)^{(k − 1) / τ} log(n_k / n_{k−1})

A union of p pools takes the mean of their b_k with half-lives n / m times as long, where m is the
size of a pool in the fit: each sample is met that many times less often.

For pools in order of utility with one half-life, the best number of pools never falls as N grows,
compared where every union ends a pass (N a common multiple of their sizes); between, the steps of
the law can tip it, and so can half-lives that differ.

Reference:
    S. Goyal et al., Scaling Laws for Data Filtering: Data Curation cannot be Compute Agnostic,
    CVPR 2024, equation 4 and theorem 1, https://arxiv.org/abs/2404.07177
    Differs from the public code: d is added after the product instead of being multiplied by its
    ratios, and a stands outside the power. Fitted there on contrastive pre-training in passes over
    12.8 million pairs; for LoRA on a few hundred samples it is an experiment.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares

from fedwinnow.curation.errors import NonFiniteError, ProtocolError

HALF_LIVES = (0.125, 512.0)
"""Range of τ in a fit, passes; its ends mean "worth nothing again" and "as good as new"."""
UTILITIES = (-1.0, 0.0)
"""Range of b in a fit."""
_GRID, _OFFSETS, _FLOORS, _STARTS = 49, 60, 25, 3
_LOGARITHMS = (math.log(HALF_LIVES[0]), math.log(HALF_LIVES[1]))
_FADED = 100.0
"""Halvings after which a repetition counts nothing in double precision."""

_Losses = Float[np.ndarray, "pools checkpoints"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """Parameters of the law for several pools, best pool first."""

    utilities: tuple[float, ...]
    """b of each pool, at most 0."""
    half_lives: tuple[float, ...]
    """τ of each pool, passes over it, above 0."""
    scale: float
    """a, above 0."""
    floor: float
    """d, in the unit of the loss, at least 0."""
    pool: float
    """Samples m of a pool in the fit, at least 1."""

    def __post_init__(self) -> None:
        wrong = {
            "utilities": not self.utilities or not all(b <= 0 for b in self.utilities),
            "half_lives": len(self.half_lives) != len(self.utilities)
            or not all(tau > 0 for tau in self.half_lives),
            "scale": not self.scale > 0,
            "floor": not self.floor >= 0,
            "pool": not self.pool >= 1,
        }
        for name, bad in wrong.items():
            if bad or not np.isfinite(getattr(self, name)).all():
                message = (
                    f"{name} = {getattr(self, name)} is out of range; allowed: finite numbers, one "
                    "utility of at most 0 and one half-life above 0 a bucket, scale above 0, floor "
                    "of at least 0, bucket of at least 1; `fedwinnow budget` writes them"
                )
                raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class LawFit:
    """Fitted law, and its error on the measured losses."""

    law: Law
    error: float
    """Root mean square of (fitted − measured) / measured."""


def exposure(seen: float, unique: float, half_life: float) -> float:
    """Return u_τ(N, n), the log of the samples seen, repetitions discounted; see the module.

    Args:
        seen: Samples seen N, at least 1.
        unique: Unique samples n among them, at least 1.
        half_life: Passes after which a repetition is worth half, above 0.
    """
    return float(_exposures(np.array([seen]), unique, np.array([half_life]))[0, 0])


def expected_loss(law: Law, seen: float, *, best: int, size: float) -> float:
    """Return the loss after training on the union of the best pools.

    Args:
        law: The fitted law.
        seen: Samples seen, repetitions counted, at least 1.
        best: Number of pools, the best first, 1 to all.
        size: Unique samples of a pool where the law is applied.
    """
    unique = max(1.0, best * size)
    pools = list(zip(law.utilities, law.half_lives, strict=True))[:best]
    power = math.fsum(b * exposure(seen, unique, tau * unique / law.pool) for b, tau in pools)
    return law.scale * math.exp(power / best) + law.floor


def expected_losses(law: Law, seen: float, size: float) -> tuple[float, ...]:
    """Return the loss for the best 1, 2, …, all pools; the smallest says how much to keep."""
    every = range(1, len(law.utilities) + 1)
    return tuple(expected_loss(law, seen, best=best, size=size) for best in every)


def most_worth(losses: tuple[float, ...]) -> int:
    """Return how many pools to keep for the least loss; of equals the most, as nothing is lost."""
    return max(range(1, len(losses) + 1), key=lambda best: (-losses[best - 1], best))


def fit_law(
    losses: _Losses,
    seen: Float[np.ndarray, " checkpoints"],
    *,
    pool: float,
    floor: float | None = None,
) -> LawFit:
    """Fit b and τ of each pool, a and d of all, by relative least squares.

    For each d and a on a grid, the best τ of each pool is taken from a grid and its b in closed
    form; the best few starts are then polished together.

    Args:
        losses: Measured loss of each pool, best pool first, at each checkpoint.
        seen: Samples seen at the checkpoints, ascending, at least 1.
        pool: Unique samples of each pool.
        floor: d, where it is known; with few checkpoints the others are then far
            more certain.

    Raises:
        NonFiniteError: a loss is NaN, infinite or not above 0; names the pool.
        ProtocolError: there are fewer than three checkpoints.
    """
    if losses.shape[1] < 3 or losses.shape[1] != len(seen) or not (np.diff(seen) > 0).all():  # noqa: PLR2004 - see the message
        message = (
            "fit of the budget law: expected at least three ascending checkpoints a bucket, got "
            f"{len(seen)} for losses of shape {losses.shape}; give more epochs"
        )
        raise ProtocolError(message)
    for number, row in enumerate(losses):
        if not (np.isfinite(row) & (row > 0)).all():
            message = (
                f"fit of the budget law: bucket {number + 1} has the losses {row.tolist()}, "
                "expected finite numbers above 0; lower the learning rate"
            )
            raise NonFiniteError(message)
    least = float(losses.min())
    if floor is not None and not 0 <= floor < least:
        message = (
            f"fit of the budget law: the floor {floor} must be at least 0 and below {least:.4g}, "
            "the smallest loss measured"
        )
        raise ProtocolError(message)
    floors = (0.0, 0.96 * least) if floor is None else (floor, floor)
    starts = _starts(losses, seen, pool, np.unique(np.linspace(*floors, _FLOORS)))
    around = (0.0, least * (1 - 1e-9)) if floor is None else (floor, floor + 1e-9 * least)
    ends = [_polished(losses, seen, pool, start, around) for start in starts[:_STARTS]]
    return min(ends, key=lambda end: end.error)


def _exposures(
    seen: Float[np.ndarray, " n"], unique: float, half_lives: Float[np.ndarray, " t"]
) -> Float[np.ndarray, "t n"]:
    """Return u_τ of several half-lives and numbers of samples seen."""
    passes = min(math.ceil(seen.max() / unique), math.ceil(_FADED * half_lives.max()) + 2)
    k = np.arange(2.0, passes + 1)
    before = np.minimum((k - 1) * unique, seen[:, None])
    steps = np.log(np.minimum(k * unique, seen[:, None]) / before)
    worth = 0.5 ** ((k - 1) / half_lives[:, None])
    found: Float[np.ndarray, "t n"] = np.log(np.minimum(unique, seen)) + worth @ steps.T
    return found


def _starts(
    losses: _Losses,
    seen: Float[np.ndarray, " n"],
    pool: float,
    floors: Float[np.ndarray, " floors"],
) -> list[list[float]]:
    """Return parameters [log a, d, b…, log τ…] from the grid, best first, one for each d."""
    grid = np.geomspace(*HALF_LIVES, _GRID)
    u = _exposures(seen, pool, grid)
    found = []
    for floor in floors.tolist():
        z = np.log(losses - floor)
        weights = ((losses - floor) / losses) ** 2
        offsets = z.max() + np.geomspace(1e-4, max(1e-3, float(u.max())), _OFFSETS)
        rest = z[None] - offsets[:, None, None]  # offset, pool, checkpoint
        top = np.einsum("tc,opc,pc->opt", u, rest, weights)
        b = np.clip(top / np.einsum("tc,pc->pt", u**2, weights)[None], *UTILITIES)
        gap = rest[:, :, None, :] - b[..., None] * u[None, None]
        squares = (weights[None, :, None, :] * gap**2).sum(axis=-1)  # offset, pool, τ
        sums = squares.min(axis=2).sum(axis=1)
        place = int(np.argmin(sums))
        taken = np.argmin(squares[place], axis=1)
        chosen = b[place, np.arange(len(losses)), taken]
        parameters = [float(offsets[place]), floor, *chosen.tolist(), *np.log(grid[taken]).tolist()]
        found.append((float(sums[place]), parameters))
    return [parameters for _, parameters in sorted(found, key=lambda one: one[0])]


def _polished(
    losses: _Losses,
    seen: Float[np.ndarray, " n"],
    pool: float,
    start: list[float],
    floors: tuple[float, float],
) -> LawFit:
    """Return the law at the nearest minimum of the relative squares."""
    number = len(losses)

    def residuals(parameters: Float[np.ndarray, " p"]) -> Float[np.ndarray, " r"]:
        offset, floor = parameters[:2]
        b, tau = parameters[2 : 2 + number], np.exp(parameters[2 + number :])
        u = _exposures(seen, pool, tau)
        found: Float[np.ndarray, " r"] = (
            (np.exp(offset + b[:, None] * u) + floor - losses) / losses
        ).ravel()
        return found

    ranges = ((-np.inf, np.inf), floors, *[UTILITIES] * number, *[_LOGARITHMS] * number)
    low, high = zip(*ranges, strict=True)
    inside = np.clip(start, np.array(low) + 1e-12, np.array(high) - 1e-12)
    end = least_squares(
        residuals, inside, bounds=(low, high), x_scale="jac", xtol=1e-12, ftol=1e-12
    )
    tau = np.exp(end.x[2 + number :])
    law = Law(
        utilities=tuple(float(value) for value in end.x[2 : 2 + number]),
        half_lives=tuple(float(value) for value in tau),
        scale=float(np.exp(end.x[0])),
        floor=float(end.x[1]),
        pool=float(pool),
    )
    return LawFit(law=law, error=float(np.sqrt(np.mean(end.fun**2))))
