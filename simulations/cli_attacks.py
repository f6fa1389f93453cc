"""``fedwinnow attacks``: one liar among honest sites, without guards and with them."""

from pathlib import Path
from typing import Annotated

import typer

from fedwinnow.cli.options import Set, typed


def attacks(
    attack: Annotated[
        list[str] | None, typer.Option("--attack", help="One of the zoo; often; none: all.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="How many seeds, from 1; 0 chose the settings.", min=1)
    ] = 3,
    evidence: Annotated[Path, typer.Option(help="Folder for attacks.json and .md.")] = Path(
        "docs/evidence"
    ),
    settings: Set = None,
) -> None:
    """Try attacks of one site on generated skills and write a table; finished runs are kept."""
    from fedwinnow.cli.progress import Watch  # noqa: PLC0415 - torch loads here
    from fedwinnow.simulations.attacks import run_attacks  # noqa: PLC0415 - torch loads here
    from fedwinnow.simulations.attacks.catalogue import ATTACKS  # noqa: PLC0415 - torch loads here

    plan = run_attacks.Plan(
        attacks=tuple(attack or ATTACKS),
        seeds=tuple(range(1, seeds + 1)),
        settings=tuple(settings or ()),
    )
    run_attacks.attacks(plan, folder=evidence, command=typed(), progress=Watch().delivery)
    print((evidence / "attacks.md").read_text(encoding="utf-8"))
