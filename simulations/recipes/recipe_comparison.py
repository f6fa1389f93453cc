"""Result of a comparison of recipes."""

from dataclasses import dataclass

from fedwinnow.simulations.recipes.successive_halving import RungResult


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedRecipe:
    """Recipe of the last rung, measured on the half of the hold-out that did not choose; nats."""

    name: str
    loss: float
    """Mean over seeds and items."""
    difference: float
    """Loss minus that of the winner."""
    low: float
    high: float
    """95 % interval of the difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutHalves:
    """Numbers of public hold-out items of all seeds, by half."""

    choosing: int
    reporting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeComparison:
    """Result of a comparison; the command prints it as JSON."""

    winner: str
    tied: tuple[str, ...]
    """Recipes that cannot be told from the winner."""
    seeds: tuple[int, ...]
    """Seeds of the last rung."""
    rungs: tuple[RungResult, ...]
    report: tuple[ReportedRecipe, ...]
    """Recipes of the last rung, the winner first."""
    anchors: HoldoutHalves
    share_of_steps: float
    """Share of the steps of running every recipe to the end, in (0, 1]."""
