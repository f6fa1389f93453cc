"""Define a raw row: where it stands, its values by column, and its text where it was JSON."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One raw row of a data source."""

    place: str
    """File and line, or file and row from 1."""
    values: Mapping[str, Any]
    """Column → value."""
    text: str = ""
    """The row as it stands in a JSON file, on one line; "" for other files."""


def named(names: Iterable[str]) -> str:
    """Return names of columns in one line; one that holds more than letters stands in quotes."""
    return ", ".join(name if re.fullmatch(r"[\w.-]+", name) else repr(name) for name in names)
