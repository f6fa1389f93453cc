"""Compare recipes by successive halving: short runs of all, longer ones of the better half.

A rung measures each remaining recipe with a share of the steps and some seeds; the losses of
public anchors decide, paired: the better half goes on. A recipe ties with the last one that would
go on where the interval of their difference holds 0 and the difference itself is below ``NEAR`` of
its half-width. The lower early gradient norm then goes first, but only among recipes that train on
the same data in the same batches, as between others a norm says nothing; else the lower mean, else
the order given. No training loss is looked at.

``NEAR`` is small on purpose. In 100 simulated cases of eight recipes whose norm carries no
information, the best one reached the last rung in 91 where every interval with 0 was a tie, in 98
by means alone; an informative norm gained nothing over means.

Reference:
    K. Jamieson, A. Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter
    Optimization, AISTATS 2016, algorithm 1, https://arxiv.org/abs/1502.07943
    Unveiling the Secret Recipe: A Guide for Supervised Fine-Tuning Small LLMs,
    https://arxiv.org/abs/2412.13337 (a low early gradient norm, a higher early training loss and a
    good end go together; compare on one data set only).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedwinnow.curation.errors import ConfigError
from fedwinnow.curation.scores.bootstrap import crossed_bootstrap
from fedwinnow.simulations.recipes.loss_curves import RankedRecipe, rank_recipes

NEAR = 0.25
"""Share of an interval's half-width within which two recipes count as equally good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """Share of steps and number of seeds with which every remaining recipe is run."""

    share: float
    """Share of a recipe's own steps, in (0, 1]."""
    seeds: int
    """At least 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeCurves:
    """Losses and early gradient norm of one recipe on a rung."""

    losses: np.ndarray
    """Anchor losses, nats, (seeds, items); NaN where a seed has not this item."""
    gradient_norm: float | None = None
    """Mean norm over the first steps."""
    batches: str = ""
    """Text that is equal for recipes with the same data and batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RungResult:
    """One rung and its ranking."""

    rung: Rung
    placed: tuple[RankedRecipe, ...]
    """Best first, by anchor loss."""
    on: tuple[str, ...]
    """Recipes that go on, best first; for the last rung, all of them."""
    tie_broken: bool
    """Whether a gradient norm put a recipe before one of lower mean loss."""


def plan_rungs(recipes: int, seeds: int) -> tuple[Rung, ...]:
    """Plan rungs that halve recipes and double steps, down to two recipes at full length.

    Eight recipes and three seeds cost half the steps of running all to the end.

    Raises:
        ConfigError: there is no recipe or no seed.
    """
    if recipes < 1 or seeds < 1:
        message = f"comparing recipes: expected at least one and one seed, got {recipes}, {seeds}"
        raise ConfigError(message)
    number = max(1, math.ceil(math.log2(recipes)))
    return tuple(
        Rung(share=0.5 ** (number - place), seeds=min(place, seeds) if place < number else seeds)
        for place in range(1, number + 1)
    )


def run_rungs(
    names: Sequence[str],
    measure: Callable[[str, Rung], RecipeCurves],
    plan: Sequence[Rung],
    *,
    seed: int,
) -> tuple[RungResult, ...]:
    """Run the recipes rung by rung; the first of the last rung's ``placed`` is the winner.

    Args:
        names: Recipes in the order given, distinct.
        measure: Runs a recipe with a rung's share of steps and seeds.
        plan: At least one rung.
        seed: Seed of the resampling.

    Raises:
        NonFiniteError: a loss is not finite; names the recipe.
    """
    left, climbs = tuple(names), []
    for place, rung in enumerate(plan, start=1):
        found = {name: measure(name, rung) for name in left}
        placed = rank_recipes({name: one.losses for name, one in found.items()}, seed=seed)
        order = tuple(one.name for one in placed)
        on = order
        if place < len(plan):
            on = _survivors(order, found, math.ceil(len(order) / 2), seed)
        broken = on != order[: len(on)]
        climbs.append(RungResult(rung=rung, placed=placed, on=on, tie_broken=broken))
        left = tuple(name for name in names if name in on)
    return tuple(climbs)


def count_runs(plan: Sequence[Rung], recipes: int) -> int:
    """Return the number of runs that the rungs take."""
    total = 0
    for rung in plan:
        total, recipes = total + recipes * rung.seeds, math.ceil(recipes / 2)
    return total


def cost_share(
    climbs: Sequence[RungResult], names: Sequence[str], steps: Callable[[str, float], int]
) -> float:
    """Return the steps taken, as a share of running every recipe to the end with all seeds.

    Args:
        climbs: Result of :func:`run_rungs`.
        names: All recipes.
        steps: Recipe and share → optimizer steps of a run.
    """
    taken = sum(
        climb.rung.seeds * steps(one.name, climb.rung.share)
        for climb in climbs
        for one in climb.placed
    )
    return taken / (climbs[-1].rung.seeds * sum(steps(name, 1.0) for name in names))


def _survivors(
    order: Sequence[str], found: Mapping[str, RecipeCurves], places: int, seed: int
) -> tuple[str, ...]:
    """Return the first ``places`` recipes; break ties at the cut by gradient norm if comparable."""
    edge = found[order[places - 1]].losses
    tied = []
    for name in order:
        mean, low, high = crossed_bootstrap(found[name].losses - edge, seed=seed)
        if low <= 0 <= high and abs(mean) <= NEAR * (high - low) / 2:
            tied.append(name)
    sure = [name for name in order[:places] if name not in tied]  # the tied lie around the cut
    norms = [found[name].gradient_norm for name in tied]
    if None not in norms and len({found[name].batches for name in tied}) == 1:
        tied.sort(key=lambda name: found[name].gradient_norm or 0.0)
    return (*sure, *tied[: places - len(sure)])
