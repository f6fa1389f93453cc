"""Compare recipes, fit a data budget or mixture: ``recipes compare``, ``budget``, ``mixture``."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedwinnow.cli.options import AsJson, Set, require_folders, require_sources, typed_command
from fedwinnow.cli.stopping import saying
from fedwinnow.cli.studies import GOES_ON
from fedwinnow.curation.config.strict_toml import to_plain

if TYPE_CHECKING:
    from fedwinnow.simulations.recipes.data_budget import Budget, BudgetPlan
    from fedwinnow.simulations.recipes.loss_curves import RankedRecipe
    from fedwinnow.simulations.recipes.merge_mixture import Mixture
    from fedwinnow.simulations.recipes.recipe_comparison import RecipeComparison, ReportedRecipe

app = typer.Typer(no_args_is_help=True, help="Compare recipes: whole scenarios.")

NOTHING = "nothing was written; run the command again"
HALVES = (
    "Half of the public hold-out chose, the other half reports: figures of the anchors that chose "
    "flatter the winner. Steps count training only, not measuring."
)


@app.callback()
def recipes() -> None:
    """Compare recipes: whole scenarios."""


@app.command()
def compare(
    scenarios: Annotated[list[Path], typer.Argument(help="TOML files, one a recipe.")],
    recipe: Annotated[
        list[str] | None,
        typer.Option(help='Settings on top of ONE scenario: "a.b=c d.e=f"; "" for none; often.'),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of the last rung.", min=1)] = 3,
    settings: Set = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Find the best of several recipes by successive halving; finished runs are not run again."""
    from fedwinnow.simulations.recipes.recipe_files import read_recipes  # noqa: PLC0415 - with the rest of this command

    read_recipes(scenarios, recipe or (), settings or ())  # a mistake is said before torch loads
    from fedwinnow.cli.progress import ProgressDisplay  # noqa: PLC0415 - torch loads here
    from fedwinnow.simulations.recipes import compare as recipes_of  # noqa: PLC0415 - torch loads here

    recipes = recipes_of.load_recipes(scenarios, recipe or (), settings or ())
    with saying(GOES_ON), ProgressDisplay() as watch:
        found = recipes_of.compare_recipes(
            recipes,
            seeds=seeds,
            command=typed_command(),
            progress=watch.delivery,
            on_progress=watch.work,
        )
    if as_json:
        print(json.dumps(to_plain(found) | {"note": HALVES}, indent=1, ensure_ascii=False))
        return
    _show_rungs(found)


def budget(  # noqa: PLR0913, PLR0917 - one option per thing that a user may change
    scenario: Annotated[Path, typer.Argument(help="TOML file of the whole federation.")],
    steps: Annotated[
        int, typer.Option(help="Optimizer steps of each site; 0: rounds × steps.", min=0)
    ] = 0,
    buckets: Annotated[int, typer.Option(help="Quality buckets, 2 or more.")] = 4,
    passes: Annotated[str, typer.Option(help="Passes after which a loss is taken.")] = "1,2,4,8",
    seeds: Annotated[int, typer.Option(help="Runs of each bucket.", min=1)] = 2,
    most: Annotated[int, typer.Option(help="Samples of a bucket used at most.", min=1)] = 64,
    rate: Annotated[float, typer.Option(help="Share of training.learning_rate, in (0, 1].")] = 0.1,
    out: Annotated[Path | None, typer.Option(help="File for the [threshold] section.")] = None,
    settings: Set = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Fit how much data a training budget is worth, in a local simulation; prints [threshold]."""
    from fedwinnow.curation.atomic_files import write_atomically  # noqa: PLC0415 - with the rest of this command
    from fedwinnow.curation.config.load_files import load_scenario  # noqa: PLC0415 - likewise
    from fedwinnow.curation.errors import ConfigError  # noqa: PLC0415 - likewise
    from fedwinnow.simulations.datasets.demo_scenario import local_model  # noqa: PLC0415 - likewise

    config = load_scenario(scenario, settings or ())
    config = replace(config, model=local_model(config.model))
    require_sources(config)
    try:
        numbers = tuple(int(word) for word in passes.split(","))
    except ValueError as error:
        message = f"--passes {passes!r}: expected whole numbers like 1,2,4,8"
        raise ConfigError(message) from error
    from fedwinnow.cli.progress import ProgressDisplay  # noqa: PLC0415 - torch loads here
    from fedwinnow.simulations.recipes.data_budget import BudgetPlan, fit_budget  # noqa: PLC0415 - likewise

    plan = BudgetPlan(
        steps=steps or config.training.rounds * config.training.steps,
        buckets=buckets, passes=numbers, seeds=seeds, most=most, rate=rate,
    )  # fmt: skip
    with saying(NOTHING), ProgressDisplay() as watch:
        found = fit_budget(config, plan, progress=watch.delivery, on_progress=watch.work)
    if out is not None:
        write_atomically(out, found.section().encode())
    if as_json:
        shown = {"keep": found.best / buckets, "expected_loss": found.expected}
        shown |= {"measured": found.measured.tolist(), "passes": numbers}
        print(json.dumps(shown | {"threshold": found.settings()}, indent=1))
        return
    _show_budget(found, plan)
    print(f"wrote {out}" if out is not None else found.section())


def _show_budget(found: "Budget", plan: "BudgetPlan") -> None:
    law, console = found.fit.law, Console()
    title = f"Buckets of {found.fit.law.pool:.0f} samples, loss in nats after … passes"
    table = Table("bucket", *map(str, plan.passes), "utility b", "half-life τ", title=title)
    for place, losses in enumerate(found.measured):
        cells = [f"{loss:.4f}" for loss in losses]
        fitted = (f"{law.utilities[place]:.4g}", f"{law.half_lives[place]:.3g}")
        table.add_row(str(place + 1), *cells, *fitted)
    console.print(table)
    title = f"Expected loss after {found.seen:.0f} samples seen"
    table = Table("keep", "share", "passes", "expected loss", title=title)
    for best, loss in enumerate(found.expected, start=1):
        mark = " ←" if best == found.best else ""
        turns = f"{found.seen / (best * found.size):.1f}"
        table.add_row(str(best), f"{best / plan.buckets:.0%}", turns, f"{loss:.4f}{mark}")
    console.print(table)
    for line in found.doubts():
        console.print(line, style="yellow", soft_wrap=True)


def _show_rungs(found: "RecipeComparison") -> None:
    console = Console()
    for place, climb in enumerate(found.rungs, start=1):
        rung = climb.rung
        seeds = "1 seed" if rung.seeds == 1 else f"{rung.seeds} seeds"
        title = f"Rung {place}: {rung.share:.0%} of the steps, {seeds}"
        table = Table(title=title)
        table.add_column("recipe", overflow="fold")
        last = place == len(found.rungs)
        for head in ("loss, choosing", "less the best (95 %)", *([] if last else ["goes on"])):
            table.add_column(head)
        for recipe in climb.placed:
            on = [] if last else ["yes" if recipe.name in climb.on else ""]
            apart = _apart(recipe, equal="equal" if recipe.tied else "")
            table.add_row(recipe.name, f"{recipe.loss:.4f}", apart, *on)
        console.print(table)
        if climb.tie_broken:
            console.print("A tie at the cut was broken by the early gradient norm.")
    table = Table("recipe", "loss, reporting", "less the choice (95 %)", title="Report")
    for one in found.report:
        table.add_row(one.name, f"{one.loss:.4f}", _apart(one))
    console.print(table)
    tied = ", ".join(found.tied)
    also = (
        f"; it cannot be told from {tied}, and stands first by mean, then by order" if tied else ""
    )
    print(f"choice: {found.winner}{also}")
    print(f"{found.share_of_steps:.0%} of the steps of running all to the end. {HALVES}")


def _apart(one: "RankedRecipe | ReportedRecipe", *, equal: str = "") -> str:
    """Format the difference with its interval; without any, as for the best, return ``equal``."""
    if one.low == one.high == 0:
        return equal
    return f"{one.difference:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"


def mixture(
    run: Annotated[
        Path, typer.Argument(help="Folder of a finished run with keep.adapters = true.")
    ],
    mixtures: Annotated[int, typer.Option(help="How many merges to measure.", min=3)] = 24,
    training_round: Annotated[
        int, typer.Option("--round", help="Whose adapters; 0: the last round's.", min=0)
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="File for the [weighting] section.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Fit a law of mixing to many merges of a run's kept adapters; nobody trains."""
    require_folders(run)
    from fedwinnow.cli.progress import ProgressDisplay  # noqa: PLC0415 - likewise
    from fedwinnow.curation.atomic_files import write_atomically  # noqa: PLC0415 - torch loads with the rest
    from fedwinnow.simulations.recipes.merge_mixture import fit_mixture as measured  # noqa: PLC0415 - torch loads here
    from fedwinnow.simulations.recipes.merge_mixture import section_text  # noqa: PLC0415 - likewise

    with saying(NOTHING), ProgressDisplay() as watch:
        found = measured(run, count=mixtures, number=training_round, on_progress=watch.work)
    if out is not None:
        write_atomically(out, section_text(found).encode())
    if as_json:
        print(json.dumps(asdict(found), indent=1))
        return
    _show(found)
    print(f"wrote {out}" if out is not None else "write the [weighting] section with --out FILE")


def _show(found: "Mixture") -> None:
    console = Console()
    table = Table("site", "weight", title=f"Best mixture of round {found.round}")
    for site, weight in found.weights.items():
        table.add_row(site, f"{weight:.3f}")
    console.print(table)
    table = Table("anchors of", "all alike", "best mixture", "by the law", title="Loss, nats")
    for name, loss in found.measured.items():
        cells = (found.alike[name], loss, found.expected[name])
        table.add_row(name or "all", *(f"{value:.4f}" for value in cells))
    console.print(table)
    console.print(
        f"{len(found.runs)} merges measured on reference and calibration anchors; the law misses "
        f"them by {found.error:.4f} nats (root mean square)",
        soft_wrap=True,
    )
