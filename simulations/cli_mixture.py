"""``fedwinnow mixture``: which weights the adapters of a finished run should have had."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedwinnow.cli.options import AsJson

if TYPE_CHECKING:
    from fedwinnow.simulations.recipes.merge_mixture import Mixture


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
    from fedwinnow.cli.progress import Watch  # noqa: PLC0415 - likewise
    from fedwinnow.curation.atomic_files import write  # noqa: PLC0415 - torch loads with the rest
    from fedwinnow.simulations.recipes.merge_mixture import mixture as measured  # noqa: PLC0415 - torch loads here
    from fedwinnow.simulations.recipes.merge_mixture import section_text  # noqa: PLC0415 - likewise

    found = measured(run, count=mixtures, number=training_round, told=Watch().work)
    if out is not None:
        write(out, section_text(found).encode())
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
