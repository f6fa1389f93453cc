"""Compare several scenarios by successive halving (``fedwinnow recipes compare``).

A recipe is a whole scenario. A rung runs each remaining recipe as a run of its own, for some seeds,
with a share of its training steps and its schedule over just those. Finished runs are found by
their settings and not run again. Half of the public hold-out chooses, the other half reports.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedwinnow.client.measuring.pass_options import OnTaskProgress
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.client.runs.run_files import simulated_run_files
from fedwinnow.curation.config.identity import run_id
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.scoring import PluginSection
from fedwinnow.curation.config.strict_toml import canonical_json, to_plain
from fedwinnow.curation.config.training import StudySection, TrainingSection
from fedwinnow.curation.errors import ConfigError, RunError
from fedwinnow.curation.scores.bootstrap import crossed_bootstrap
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.server.report.record import RunRecord, read_record
from fedwinnow.server.run.driver import Progress
from fedwinnow.server.run.preflight import check_config
from fedwinnow.simulations.recipes.choosing_holdout import scenario_holdout
from fedwinnow.simulations.recipes.recipe_comparison import (
    HoldoutHalves,
    RecipeComparison,
    ReportedRecipe,
)
from fedwinnow.simulations.recipes.recipe_files import read_recipes
from fedwinnow.simulations.recipes.successive_halving import (
    RecipeCurves,
    Rung,
    RungResult,
    cost_share,
    count_runs,
    plan_rungs,
    run_rungs,
)
from fedwinnow.simulations.runtimes.in_process import simulate
from fedwinnow.simulations.studies.run_study import is_finished

EARLY = 10
"""Number of first steps of a site whose gradient norm counts as early."""

Recipes = Mapping[str, RunConfig]


def load_recipes(
    scenarios: Sequence[Path], groups: Sequence[str], settings: Sequence[str] = ()
) -> dict[str, RunConfig]:
    """Read recipes, as ``read_recipes`` of ``recipe_files.py`` does, and check them.

    Raises:
        ConfigError: a file or setting is wrong, a name comes twice, groups have two scenarios.
        PluginError: a plug-in or one of its settings is unknown.
    """
    found = read_recipes(scenarios, groups, settings)
    for config in found.values():
        check_config(config)
    return found


def compare_recipes(
    recipes: Recipes,
    *,
    seeds: int,
    command: str = "",
    progress: Progress | None = None,
    on_progress: OnTaskProgress | None = None,
) -> RecipeComparison:
    """Run the recipes rung by rung and report the winner.

    Args:
        recipes: Name → scenario; all on the same base and anchors.
        seeds: Seeds of the last rung; they count on from the first recipe's ``run.seed``.
        command: The command line, for the runs' reports.
        progress: Called on every delivery.
        on_progress: Called with the progress of long work within a run.

    Raises:
        ConfigError: recipes cannot be compared, or one does not train.
        RunError: a run could not go on; names recipe and seed.
    """
    plan = plan_rungs(len(recipes), seeds)
    first = _comparable(recipes)
    numbers = [first.run.seed + place for place in range(plan[-1].seeds)]
    public = {n: scenario_holdout(replace(first, run=replace(first.run, seed=n))) for n in numbers}
    half = {
        name: bool(chooses)
        for one in public.values()
        for name, chooses in zip(one.ids, one.choosing, strict=True)
    }
    items = sorted(half)
    choosing = np.array([half[name] for name in items], dtype=bool)
    column = {name: place for place, name in enumerate(items)}
    tables: dict[str, np.ndarray] = {}
    cache, total, done = ProcessCache(), count_runs(plan, len(recipes)), 0

    def measure(name: str, rung: Rung) -> RecipeCurves:
        nonlocal done
        table, norms = np.full((rung.seeds, len(items)), np.nan), []
        for place, number in enumerate(numbers[: rung.seeds]):
            done += 1
            config = at_rung(recipes[name], rung.share, number)
            cache.progress = _within(on_progress, f"run {done} of {total}, {name}")
            record = _run(name, config, command, progress, cache)
            losses = record.arms["curated"].losses
            if len(losses) != len(public[number].ids):
                message = (
                    f"recipe {name!r}, seed {number}: {len(losses)} losses for "
                    f"{len(public[number].ids)} hold-out anchors; remove {config.run.name}"
                )
                raise RunError(message)
            table[place, [column[one] for one in public[number].ids]] = losses
            norms += _early_norms(config)
        tables[name] = table
        return RecipeCurves(
            losses=table[:, choosing],
            gradient_norm=float(np.mean(norms)) if norms else None,
            batches=_batches(recipes[name]),
        )

    climbs = run_rungs(tuple(recipes), measure, plan, seed=derive_seed(first.run.seed, "recipes"))
    return _told(recipes, climbs, tables, choosing, numbers)


def named_by_content(config: RunConfig, name: str) -> RunConfig:
    """Return the configuration renamed by a hash of its settings and data."""
    config = replace(config, run=replace(config.run, name=name))
    return replace(config, run=replace(config.run, name=f"{name}-{run_id(config)[-8:]}"))


def at_rung(config: RunConfig, share: float, seed: int) -> RunConfig:
    """Return a recipe's run on a rung: fewer steps a round, the curated arm, one evaluation."""
    section = replace(config.training, steps=_steps(config, share))
    short = replace(
        config,
        run=replace(config.run, seed=seed),
        scorer=replace(config.scorer, comparison=()),
        training=section,
        evaluation=replace(config.evaluation, every=section.rounds, generate=0),
        study=StudySection(truth=config.study.truth),
    )
    return named_by_content(short, "recipe")


def _steps(config: RunConfig, share: float) -> int:
    return max(1, round(share * config.training.steps))


def _comparable(recipes: Recipes) -> RunConfig:
    """Return the first recipe; check that all have the same model and anchors.

    Raises:
        ConfigError: they do not, or one does not train.
    """
    first_name, first = next(iter(recipes.items()))
    for name, config in recipes.items():
        if config.training.rounds < 1:
            message = f"recipe {name!r}: training.rounds = 0 trains nothing; set at least 1"
            raise ConfigError(message)
        for section in ("model", "anchors"):
            mine, theirs = to_plain(getattr(config, section)), to_plain(getattr(first, section))
            for key in (
                "copies",
                "corruptions",
            ):  # derived from the anchors; do not change which they are
                mine.pop(key, None), theirs.pop(key, None)
            if mine != theirs:
                message = (
                    f"recipe {name!r}: [{section}] differs from that of {first_name!r}; losses of "
                    "other models or anchors cannot be compared, give all recipes the same"
                )
                raise ConfigError(message)
    return first


def _run(
    name: str, config: RunConfig, command: str, progress: Progress | None, cache: ProcessCache
) -> RunRecord:
    """Return the record of one run; run it now unless it has finished before."""
    folder = Path(config.run.output) / config.run.name
    if not is_finished(folder, config):
        try:
            simulate(config, resume=True, progress=progress, command=command, cache=cache)
        except RunError as error:
            message = f"recipe {name!r}, seed {config.run.seed}: {error}; mend it or leave it out"
            raise RunError(message) from error
    return read_record(folder / "record.json")


def _early_norms(config: RunConfig) -> list[float]:
    """Read the gradient norms of each site's first steps; a silo that kept nothing has none."""
    found: list[float] = []
    for site in config.sites:
        file = simulated_run_files(config, site.name).gradient_norms("curated", 1)
        if file.exists():
            found += json.loads(file.read_text(encoding="utf-8"))["norms"][:EARLY]
    return found


def _batches(config: RunConfig) -> str:
    """Return a text that is equal for recipes with the same data and batch size."""
    section, plugin = config.training, PluginSection(name="")
    bare = TrainingSection(batch_size=section.batch_size, accumulation=section.accumulation)
    run = replace(config.run, name="run", output="")
    return canonical_json(replace(config, run=run, training=bare, weighting=plugin, merging=plugin))


def _within(on_progress: OnTaskProgress | None, where: str) -> OnTaskProgress | None:
    if on_progress is None:
        return None
    return lambda what, done, total: on_progress(f"{where}: {what}", done, total)


def _told(
    recipes: Recipes,
    climbs: Sequence[RungResult],
    tables: Mapping[str, np.ndarray],
    choosing: np.ndarray,
    seeds: Sequence[int],
) -> RecipeComparison:
    last = climbs[-1].placed
    winner = last[0].name
    report = []
    for one in last:
        mine, best = (tables[name][:, ~choosing] for name in (one.name, winner))
        mean, low, high = crossed_bootstrap(mine - best, seed=derive_seed(seeds[0], "report"))
        loss = float(np.nanmean(mine))
        report.append(ReportedRecipe(name=one.name, loss=loss, difference=mean, low=low, high=high))
    return RecipeComparison(
        winner=winner,
        tied=tuple(one.name for one in last if one.tied),
        seeds=tuple(seeds),
        rungs=tuple(climbs),
        report=tuple(report),
        anchors=HoldoutHalves(choosing=int(choosing.sum()), reporting=int((~choosing).sum())),
        share_of_steps=cost_share(
            climbs, tuple(recipes), lambda name, share: _steps(recipes[name], share)
        ),
    )
