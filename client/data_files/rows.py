"""Define a raw row: where it stands, its values by column, and its text where it was JSON."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One raw row of a data source."""

    place: str
    """File and line, or file and row from 1."""
    values: Mapping[str, Any]
    """Column → value."""
    text: str = ""
    """The row as it stands in a JSON file, on one line; "" for other files."""
