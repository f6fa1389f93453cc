"""What a comparison of recipes found."""

from dataclasses import dataclass

from fedwinnow.simulations.recipes.successive_halving import RungResult


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedRecipe:
    """A recipe of the last rung, on the half of the hold-out that did not choose; nats."""

    name: str
    loss: float
    """Mean over seeds and items."""
    difference: float
    """Loss less that of the choice."""
    low: float
    high: float
    """95 % interval of the difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutHalves:
    """Public hold-out items of all seeds."""

    choosing: int
    reporting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeComparison:
    """What a comparison found; the command prints it as JSON."""

    winner: str
    tied: tuple[str, ...]
    """Recipes that cannot be told from the choice."""
    seeds: tuple[int, ...]
    """Of the last rung."""
    rungs: tuple[RungResult, ...]
    report: tuple[ReportedRecipe, ...]
    """Recipes of the last rung, the choice first."""
    anchors: HoldoutHalves
    share_of_steps: float
    """Of running every recipe to the end, in (0, 1]."""
