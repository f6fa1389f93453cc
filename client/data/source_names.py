"""Tell a data source's missing file from a hub's name, before anything heavy is loaded."""

import re
from pathlib import Path

from fedwinnow.curation.errors import DataError

ENDINGS = (".jsonl", ".parquet", ".csv")
"""Endings of data files."""
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


def refuse_missing(source: str) -> None:
    """Refuse a path that leads nowhere; what can be a hub's name passes.

    Raises:
        DataError: there is no such file or folder.
    """
    path = Path(source)
    if source and (path.is_file() or path.is_dir()):
        return
    path_like = (
        not _HUB_NAME.fullmatch(source)
        or path.suffix in ENDINGS
        or source.startswith(".")
        or (path.parent != Path() and path.parent.is_dir())
    )
    if path_like:
        message = f"{source!r}: no such data file; give its path, a folder or a hub name"
        raise DataError(message)
