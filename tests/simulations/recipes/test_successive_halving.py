"""Laws of successive halving, on made-up loss curves."""

from itertools import pairwise

import numpy as np
import pytest

from fedwinnow.curation.errors import ConfigError, NonFiniteError
from fedwinnow.simulations.recipes.successive_halving import (
    RecipeCurves,
    Rung,
    cost_share,
    count_runs,
    plan_rungs,
    run_rungs,
)

NAMES = tuple("abcdefgh")


class World:
    """Eight recipes whose curves cross: y(t) = L + A·t^−β, the same items for all, noise."""

    def __init__(self, seed: int, *, items: int = 40) -> None:
        """Draw limits 0.02 apart, and speeds that have nothing to do with them."""
        random = np.random.default_rng(seed)
        self.seed, self.runs = seed, []
        self.limit = dict(zip(NAMES, 2.0 + 0.02 * random.permutation(8), strict=True))
        self.speed = {name: random.uniform(0.02, 0.08) for name in NAMES}
        self.items = random.normal(size=(3, items))

    def mean(self, name, share):
        """True loss."""
        return self.limit[name] + self.speed[name] * share**-0.5

    @property
    def best(self):
        """The recipe that is best at the end."""
        return min(NAMES, key=lambda name: self.mean(name, 1.0))

    def measure(self, name, rung):
        """Losses of the items with a recipe's own noise; a gradient norm that means nothing."""
        self.runs.append((name, rung))
        random = np.random.default_rng([self.seed, ord(name), round(1000 * rung.share)])
        noise = 0.05 * random.normal(size=(rung.seeds, self.items.shape[1]))
        losses = self.mean(name, rung.share) + self.items[: rung.seeds] + noise
        return RecipeCurves(losses=losses, gradient_norm=random.uniform(), batches="same")


def test_halving_keeps_the_eventually_best_for_half_of_the_steps():
    """Of 8 recipes, in at least 90 % of 40 worlds, at no more than 50 % of the steps."""
    hits = 0
    for seed in range(40):
        world = World(seed)
        climbs = run_rungs(NAMES, world.measure, plan_rungs(8, 3), seed=seed)
        hits += world.best in [one.name for one in climbs[-1].placed]
        assert cost_share(climbs, NAMES, lambda _, share: round(1000 * share)) <= 0.5
        assert len(world.runs) == 8 + 4 + 2
        assert sum(rung.seeds for _, rung in world.runs) == count_runs(plan_rungs(8, 3), 8)
    assert hits >= 36


def told(values, norms=None, batches=None):
    """A measure that says the same on every rung."""

    def measure(name, rung):
        losses = np.full((rung.seeds, 5), values[name]) + np.arange(5)
        norm = None if norms is None else norms[name]
        return RecipeCurves(
            losses=losses, gradient_norm=norm, batches=(batches or {}).get(name, "same")
        )

    return measure


def test_halving_of_one_recipe_is_one_run_to_the_end():
    """Nothing to choose from: full length, all seeds, the recipe itself."""
    (climb,) = run_rungs(("only",), told({"only": 1.0}), plan_rungs(1, 3), seed=0)
    assert (climb.rung.share, climb.rung.seeds) == (1.0, 3)
    assert climb.on == ("only",)


def test_halving_of_equals_keeps_the_order_given_and_says_so():
    """Equal losses and norms: the first half goes on, and the others are marked as tied."""
    same = dict.fromkeys("wxyz", 2.0)
    first, last = run_rungs(tuple("wxyz"), told(same, norms=same), plan_rungs(4, 2), seed=0)
    assert first.on == ("w", "x")
    assert not first.tie_broken
    assert [one.tied for one in first.placed] == [False, True, True, True]
    assert [one.name for one in last.placed] == ["w", "x"]


def test_halving_breaks_ties_by_gradient_norm_on_the_same_batches_only():
    """Equal losses: the lower norm goes on; not where data or batches differ, nor past a loss."""
    same, norms = dict.fromkeys("wxyz", 2.0), dict(zip("wxyz", (4.0, 3.0, 2.0, 1.0), strict=True))
    climb = run_rungs(tuple("wxyz"), told(same, norms), plan_rungs(4, 1), seed=0)[0]
    assert climb.on == ("z", "y")
    assert climb.tie_broken
    other = {"z": "other data"}
    assert run_rungs(tuple("wxyz"), told(same, norms, other), plan_rungs(4, 1), seed=0)[0].on == (
        "w",
        "x",
    )
    apart = dict(zip("wxyz", (2.0, 2.1, 2.2, 2.3), strict=True))
    climb = run_rungs(tuple("wxyz"), told(apart, norms), plan_rungs(4, 1), seed=0)[0]
    assert climb.on == ("w", "x")
    assert not climb.tie_broken


def test_halving_refuses_a_nan_by_name():
    """A recipe whose loss is no number stops the comparison and is named."""
    with pytest.raises(NonFiniteError, match="'x'"):
        run_rungs(("w", "x"), told({"w": 1.0, "x": np.nan}), plan_rungs(2, 2), seed=0)


@pytest.mark.parametrize("number", range(1, 18))
def test_rungs_end_with_at_most_two_recipes_at_full_length(number):
    """Whatever the number of recipes; shares double, the last is 1, all seeds come last."""
    plan, left = plan_rungs(number, 3), number
    for rung in plan[:-1]:
        left = -(-left // 2)
        assert rung.seeds <= 3
    assert left <= 2
    assert plan[-1] == Rung(share=1.0, seeds=3)
    assert all(2 * a.share == b.share for a, b in pairwise(plan))


def test_rungs_of_nothing_are_refused():
    """No recipe, or no seed."""
    for recipes, seeds in ((0, 1), (1, 0)):
        with pytest.raises(ConfigError):
            plan_rungs(recipes, seeds)
