"""Define options that several commands share, and return the command line as it was typed."""

import shlex
import sys
from pathlib import Path
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


def typed_command() -> str:
    """Return the command line as it was typed, for a manifest or a page."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
