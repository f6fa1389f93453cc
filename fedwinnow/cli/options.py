"""Define options that several commands share, and return the command line as it was typed."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedwinnow.curation.errors import DataError

if TYPE_CHECKING:
    from fedwinnow.curation.config.run import RunConfig

Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting: section.key=value; may be given often."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last commit in the run folder.")
]


def require_sources(config: "RunConfig") -> None:
    """Refuse a scenario whose data or anchors are not there, before torch loads.

    Raises:
        DataError: a file or folder is missing.
    """
    from fedwinnow.client.data_files.sources import refuse_missing  # noqa: PLC0415 - only where data are named

    for source in (config.anchors.path, *(site.data for site in config.sites)):
        refuse_missing(source)


def require_folders(*folders: Path) -> None:
    """Refuse folders that are not there, before torch loads.

    Raises:
        DataError: a folder is missing.
    """
    for folder in folders:
        if not folder.is_dir():
            message = f"{folder}: there is no such folder; look at its path"
            raise DataError(message)


def typed_command() -> str:
    """Return the command line as it was typed, for a manifest or a page."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
