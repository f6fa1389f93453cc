"""Options that several commands share."""

from typing import Annotated

import typer

Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting: section.key=value; may be given often."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last commit in the run folder.")
]
