"""Rank recipes by the loss curves of short runs: one shape for all, paired differences.

Checkpoints in the first tenth of the steps are dropped. All curves share one shape

    y(t) = d + a · t^γ

where γ = 1 is a straight line, the first-order behaviour at a tiny rate, and other γ a power law
with an offset. A line is used unless another γ predicts left-out checkpoints clearly better:
squared errors below ``BETTER`` of the line's, over all recipes. Given γ, the fitted loss at the
last step is a weighted sum of the checkpoints with the same weights for every seed, item and
recipe, so that paired differences of fitted ends are exact and can be resampled.

Reference:
    L. Choshen et al., A Hitchhiker's Guide to Scaling Law Estimation, ICML 2025, sections 4 and 5,
    https://arxiv.org/abs/2410.11840: intermediate checkpoints, without the first tenth.
    Can Small Training Runs Reliably Guide Data Curation?, ICLR 2026,
    https://arxiv.org/abs/2512.24503: the tiny rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedwinnow.curation.errors import NonFiniteError, ProtocolError
from fedwinnow.curation.scores.bootstrap import crossed_bootstrap

LINE = 1.0
SHAPES = (LINE, 0.75, 0.5, 0.25, -0.25, -0.5, -1.0, -2.0)
"""Exponents γ that are tried."""
BETTER = 0.8
"""Share of the line's left-out error that another shape must fall below."""
FEWEST = 4
"""Fewest checkpoints for a choice of shape."""
DROPPED = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedRecipe:
    """Place of one recipe in the ranking."""

    name: str
    loss: float
    """Mean over seeds and items, nats."""
    difference: float
    """Loss minus that of the best, over the seeds that both have."""
    low: float
    high: float
    """95 % interval of the difference."""
    seeds: int
    tied: bool
    """Whether the interval holds 0: the recipe cannot be told from the best."""


def late_checkpoints(steps: Sequence[int]) -> np.ndarray:
    """Return the positions of the checkpoints after the first tenth of the steps."""
    found: np.ndarray = np.flatnonzero(np.array(steps) > DROPPED * steps[-1])
    return found


def choose_shape(steps: np.ndarray, curves: np.ndarray) -> float:
    """Choose γ by leave-one-out errors of the checkpoints; see the module.

    Args:
        steps: Optimizer steps of the kept checkpoints, ascending, at least 1.
        curves: Mean loss of each recipe at each of them, (recipes, checkpoints).
    """
    if len(steps) < FEWEST:
        return LINE
    errors = {}
    for shape in SHAPES:
        hat = _hat(steps, shape)
        left_out = (curves - curves @ hat.T) / (1 - np.diag(hat))
        errors[shape] = float((left_out**2).sum())
    best = min(SHAPES, key=lambda shape: errors[shape])
    tiny = np.finfo(float).eps * float((curves**2).sum())
    return best if errors[best] + tiny < BETTER * errors[LINE] else LINE


def fitted_ends(steps: np.ndarray, curves: np.ndarray, shape: float) -> np.ndarray:
    """Return fitted losses at the last step: (seeds, checkpoints, items) → (seeds, items)."""
    weights = _hat(steps, shape)[-1] if len(steps) > 1 else np.ones(1)
    found: np.ndarray = np.einsum("c,sci->si", weights, curves)
    return found


def rank_recipes(losses: Mapping[str, np.ndarray], *, seed: int) -> tuple[RankedRecipe, ...]:
    """Rank recipes from the lowest loss to the highest; equal ones in the order given.

    Args:
        losses: Recipe → (seeds, items); NaN where a seed has not this item, the same for all.
            Recipes that stopped early have fewer seeds: the first ones.
        seed: Seed of the resampling.

    Raises:
        NonFiniteError: a recipe lacks a loss that another has, or has an infinite one.
        ProtocolError: there is no recipe, or they have other items.
    """
    if not losses or len({table.shape[1] for table in losses.values()}) != 1:
        message = f"ranking: expected recipes on the same items, got {sorted(losses)}"
        raise ProtocolError(message)
    widest = max(losses.values(), key=len)
    for name, table in losses.items():
        lacks = (np.isnan(table) & ~np.isnan(widest[: len(table)])).any()
        if np.isinf(table).any() or lacks or np.isnan(table).all():
            message = (
                f"recipe {name!r}: expected finite losses, got NaN or infinity; leave it out or "
                "lower its learning rate"
            )
            raise NonFiniteError(message)
    common = min(len(table) for table in losses.values())
    means = {name: float(np.nanmean(table[:common])) for name, table in losses.items()}
    order = sorted(losses, key=lambda name: means[name])
    best, placed = losses[order[0]], []
    for name in order:
        both = min(len(best), len(losses[name]))
        apart = losses[name][:both] - best[:both]
        mean, low, high = crossed_bootstrap(apart, seed=seed)
        placed.append(
            RankedRecipe(
                name=name,
                loss=float(np.nanmean(losses[name])),
                difference=mean,
                low=low,
                high=high,
                seeds=len(losses[name]),
                tied=name != order[0] and low <= 0 <= high,
            )
        )
    return tuple(placed)


def clearly_worse(placed: Sequence[RankedRecipe]) -> frozenset[str]:
    """Return the recipes whose interval lies above 0: more seeds would not make them the best."""
    return frozenset(one.name for one in placed if one.low > 0)


def _hat(steps: np.ndarray, shape: float) -> np.ndarray:
    """Return the least-squares projection onto 1 and t^γ, (checkpoints, checkpoints)."""
    powers = (steps / steps[-1]) ** shape
    design = np.stack([np.ones(len(steps)), powers], axis=1)
    found: np.ndarray = design @ np.linalg.pinv(design)
    return found
