"""Successive halving: short runs of every recipe, longer ones of the better half, and so on.

A rung measures each recipe that is left with a share of the steps and some seeds; the losses of
public anchors decide, paired: the better half goes on. A recipe ties with the last one that would
go on where the interval of their difference holds 0 and the difference itself is below ``NEAR`` of
its half-width. The lower early gradient norm then goes first, but only among recipes that train on
the same data in the same batches, as between others a norm says nothing; else the lower mean, else
the order given. No training loss is looked at.

``NEAR`` is small on purpose: in made-up worlds of eight recipes whose norm tells nothing, the best
one reached the last rung in 91 of 100 where every interval with 0 was a tie, in 98 by means alone;
a norm that did tell gained nothing over them.

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
    """How far every recipe that is left is run."""

    share: float
    """Of a recipe's own steps, in (0, 1]."""
    seeds: int
    """At least 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeCurves:
    """What a rung finds of one recipe."""

    losses: np.ndarray
    """Anchor losses, nats, (seeds, items); NaN where a seed has not this item."""
    gradient_norm: float | None = None
    """Mean over the first steps."""
    batches: str = ""
    """Equal where data and batches are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RungResult:
    """One rung with its result."""

    rung: Rung
    placed: tuple[RankedRecipe, ...]
    """Best first, by anchor loss."""
    on: tuple[str, ...]
    """Who goes on, best first; of the last rung all stay listed."""
    tie_broken: bool
    """Whether a gradient norm put somebody before a recipe of lower mean loss."""


def plan_rungs(recipes: int, seeds: int) -> tuple[Rung, ...]:
    """Rungs that end with two recipes at full length; each halves recipes and doubles steps.

    Eight recipes and three seeds cost half of the steps of running all to the end.

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
    """Climb the rungs; the first of the last rung's ``placed`` is the choice.

    Args:
        names: Recipes in the order given, distinct.
        measure: Runs a recipe as far as a rung says.
        plan: At least one rung.
        seed: Of the resampling.

    Raises:
        NonFiniteError: a loss is no finite number; names the recipe.
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
    """Runs that the rungs take."""
    total = 0
    for rung in plan:
        total, recipes = total + recipes * rung.seeds, math.ceil(recipes / 2)
    return total


def cost_share(
    climbs: Sequence[RungResult], names: Sequence[str], steps: Callable[[str, float], int]
) -> float:
    """Steps taken, as a share of running every recipe to the end with the last rung's seeds.

    Args:
        climbs: What :func:`run_rungs` found.
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
    """The first ``places`` recipes, ties at the cut broken by gradient norm where it may be."""
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
