"""``fedwinnow run`` and ``fedwinnow status``: the coordinator's commands."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedwinnow.simulations.cli_options import AsJson, Resume


def run(
    file: Annotated[Path, typer.Argument(help="TOML file of the deployed run.")],
    *,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Run over many sites through Flower; submitted again whenever Flower ends it too early."""
    from fedwinnow.curation.scenario import load_run  # noqa: PLC0415 - torch loads here
    from fedwinnow.simulations.supervise import supervise  # noqa: PLC0415 - Flower loads here
    from fedwinnow.simulations.tables import show_run  # noqa: PLC0415 - rich only where it prints

    logging.getLogger("fedwinnow.simulations").setLevel(logging.INFO)
    folder = supervise(file, load_run(file), resume=resume)
    if as_json:
        print((folder / "summary.json").read_text(encoding="utf-8"))
        return
    show_run(json.loads((folder / "record.json").read_text(encoding="utf-8")), folder)


def status(
    run: Annotated[Path, typer.Argument(help="A run folder, or its run.toml.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show a run's phase, deadline, members, who answered, who is missing and why, and bytes."""
    from fedwinnow.curation.scenario import load_run  # noqa: PLC0415 - torch loads here
    from fedwinnow.server.status import read_status  # noqa: PLC0415 - with the rest of this command

    folder = run
    if run.is_file():
        section = load_run(run).run
        folder = Path(section.output) / section.name
    found = read_status(folder)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    _show(found)


def _show(found: Mapping[str, Any]) -> None:
    where = " ".join(
        str(part) for part in (found["phase"], found["round"] or "", found["arm"]) if part
    )
    left = found["ends"] - time.time()
    words = f"{left:.0f} s are left" if left > 0 else f"passed {-left:.0f} s ago"
    ends = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["ends"]))
    print(f"run       {found['run']}")
    print("phase     done" if found["done"] else f"phase     {where}, deadline {ends} ({words})")
    print(f"bytes     {found['bytes_down']:,} down, {found['bytes_up']:,} up so far")
    table = Table("site", "this phase")
    for site in sorted({*found["members"], *found["answered"], *found["missing"]}):
        answer = found["answered"].get(site)
        said = f"answered after {answer['seconds']:.1f} s" if answer else "is awaited"
        table.add_row(site, found["missing"].get(site, said))
    Console().print(table)
    absent = [
        (one["phase"], one["round"], site, why)
        for one in found["phases"]
        for site, why in one["missing"].items()
    ]
    if absent:
        table = Table("phase", "round", "site", "was missing because")
        for phase, number, site, why in absent:
            table.add_row(phase, str(number), site, why)
        Console().print(table)
