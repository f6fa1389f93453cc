"""Rank recipes by short proxy runs at a tiny learning rate, with paired batches and items.

Each recipe, a list of samples, trains from the same adapter at a constant rate far below the normal
one, where the first-order term decides. It trains with several seeds; each seed draws the same
positions from lists of the same length (paired batches). The same public hold-out items are
evaluated at the same steps within each run. ``simulations/recipes/loss_curves.py`` reduces a curve
to one number. After ``LEAST_SEEDS`` seeds, a recipe that is clearly worse than the best is stopped.

Reference:
    Can Small Training Runs Reliably Guide Data Curation?, ICLR 2026,
    https://arxiv.org/abs/2512.24503 (a rate one to two orders below normal; single passes of
    pre-training; LoRA untested there).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedwinnow.client.measuring.evaluation import evaluate
from fedwinnow.client.measuring.pass_options import OnTaskProgress, PassOptions
from fedwinnow.client.training.local_training import train
from fedwinnow.curation.config.training import TrainingSection
from fedwinnow.curation.datatypes import Adapter, Sample
from fedwinnow.curation.errors import ConfigError, DataError, NonFiniteError
from fedwinnow.curation.model.lora_model import LoadedModel
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.simulations.recipes.loss_curves import (
    RankedRecipe,
    choose_shape,
    clearly_worse,
    fitted_ends,
    late_checkpoints,
    rank_recipes,
)
from fedwinnow.strategies.interfaces.ordering import Ordering
from fedwinnow.strategies.registry import build

LEAST_SEEDS = 2
"""Seeds that every recipe gets before one may be stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyPlan:
    """Settings of the short runs."""

    learning_rate: float
    """Constant, one to two orders below the normal one, above 0."""
    checkpoints: tuple[int, ...]
    """Optimizer steps after which the hold-out is evaluated, ascending; the last ends a run."""
    seeds: tuple[int, ...]
    """Seeds of order and dropout."""
    options: PassOptions
    """Options to encode samples and hold-out, and to batch the hold-out."""
    early_stop: bool = True
    """Whether a recipe that is clearly behind gets no further seeds."""

    def __post_init__(self) -> None:
        steps = self.checkpoints
        rising = all(a < b for a, b in zip((0, *steps), steps, strict=False))
        if not steps or not rising or not self.seeds or not self.learning_rate > 0:
            message = (
                f"proxy runs: checkpoints {list(steps)}, {len(self.seeds)} seeds, learning rate "
                f"{self.learning_rate}: expected ascending steps from 1, at least one seed and a "
                "rate above 0; use larger pools or smaller batches"
            )
            raise ConfigError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyRanking:
    """Ranking and loss curves of the short runs."""

    placed: tuple[RankedRecipe, ...]
    """Best first."""
    shape: float
    """γ of the curves; 1 is a line."""
    curves: Mapping[str, np.ndarray]
    """Recipe → losses, (seeds, checkpoints, items)."""


def proxy_ranking(
    loaded: LoadedModel,
    recipes: Mapping[str, Sequence[Sample]],
    holdout: Sequence[Sample],
    *,
    start: Adapter,
    section: TrainingSection,
    plan: ProxyPlan,
    on_progress: OnTaskProgress | None = None,
) -> ProxyRanking:
    """Train every recipe briefly and rank them by the loss of the hold-out.

    Args:
        loaded: Model to train with; holds the adapter of the last run afterwards.
        recipes: Name → samples; lists of the same length draw the same positions.
        holdout: Public items, in no recipe.
        start: Adapter that every run begins from.
        section: Batch size, accumulation, clipping, decay, precision; nothing else of it is read.
        plan: Rate, steps and seeds.
        on_progress: Called with the steps of each run.

    Raises:
        ConfigError: there is no recipe.
        DataError: no hold-out item has a response token.
        EmptySelectionError: a recipe holds no sample.
        NonFiniteError: a loss is NaN or infinite; names recipe and seed.
    """
    if not recipes:
        message = "proxy runs: expected at least one recipe, got none"
        raise ConfigError(message)
    found: dict[str, list[np.ndarray]] = {name: [] for name in recipes}
    kept = late_checkpoints(plan.checkpoints)
    steps = np.array(plan.checkpoints, dtype=np.float64)[kept]
    out: frozenset[str] = frozenset()
    for number, seed in enumerate(plan.seeds, start=1):
        for name, samples in recipes.items():
            if name in out:
                continue
            what = f"{name}, seed {number} of {len(plan.seeds)}"
            try:
                curve = _curve(
                    loaded, samples, holdout, start, section, plan, seed, what, on_progress
                )
            except NonFiniteError as error:
                message = f"recipe {name!r}, seed {seed}: {error}"
                raise NonFiniteError(message) from error
            found[name].append(curve)
        curves = {name: np.stack(seeds) for name, seeds in found.items()}
        middle = np.stack([curve[:, kept].mean(axis=(0, 2)) for curve in curves.values()])
        shape = choose_shape(steps, middle)
        last = {name: fitted_ends(steps, curve[:, kept], shape) for name, curve in curves.items()}
        placed = rank_recipes(last, seed=derive_seed(plan.seeds[0], "proxy ranking"))
        if plan.early_stop and number >= LEAST_SEEDS:
            out |= clearly_worse(placed)
    return ProxyRanking(placed=placed, shape=shape, curves=curves)


def _curve(  # noqa: PLR0913, PLR0917 - one run of proxy_ranking, with all that it was given
    loaded: LoadedModel,
    samples: Sequence[Sample],
    holdout: Sequence[Sample],
    start: Adapter,
    section: TrainingSection,
    plan: ProxyPlan,
    seed: int,
    what: str,
    on_progress: OnTaskProgress | None,
) -> np.ndarray:
    """Train once; return losses of items with a target at each checkpoint, (checkpoints, items)."""
    ordering: Ordering = build("ordering", "shuffled", {})
    rows: list[np.ndarray] = []

    def look(done: int, total: int) -> None:
        if done in plan.checkpoints:
            losses = evaluate(loaded, holdout, plan.options)
            rows.append(losses[~np.isnan(losses)])
        if on_progress is not None:
            on_progress(what, done, total)

    train(
        loaded,
        samples,
        adapter=start,
        section=replace(section, warmup_share=0.0),  # a checkpoint is the end of a shorter run
        steps=plan.checkpoints[-1],
        step_offset=0,
        total_steps=plan.checkpoints[-1],
        order=ordering(np.zeros(len(samples)), derive_seed(seed, "order"), samples),
        objective=build("objective", "sft", {}),
        learning_rate=plan.learning_rate,
        schedule="constant",
        seed=seed,
        options=plan.options,
        on_progress=look,
    )
    if len(rows[0]) == 0:
        what = f"a hold-out item with a response token, got none among {len(holdout)}"
        message = f"proxy runs: expected {what}; add anchors or raise model.max_length"
        raise DataError(message)
    return np.stack(rows)
