"""Read, hash and verify the chain of the egress ledger on disk.

h_i = SHA-256(line i without h_i), where line i holds h_{i−1}. A line counts as whole only if it is,
byte for byte, what the ledger would have written. The head file holds the number of lines and the
last hash, so that a cut at the end shows as well.

Reference:
    S. Haber and W. S. Stornetta, How to Time-Stamp a Digital Document, 1991.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedwinnow.curation.errors import OutputError

START = "0" * 64
"""The hash before the first line."""
FIELDS = frozenset(
    {"time", "run", "phase", "round", "arm", "kind", "arrays", "size", "sha256", "request"}
    | {"recipient", "data", "anchors", "epsilon", "salt", "previous", "hash"}
)
"""Fields of every line."""
UNUSUAL = frozenset({"passed_on"})
"""Fields that a line holds only where they are not empty."""


def file_of(folder: Path) -> Path:
    """Return the path of the ledger in a work folder."""
    return folder / "egress.jsonl"


def head_of(folder: Path) -> Path:
    """Return the path of the file with the number of lines and the last hash."""
    return folder / "egress.head"


def line_of(tree: Mapping[str, Any]) -> bytes:
    """Encode an entry as a line of the ledger."""
    return json.dumps(tree, ensure_ascii=False).encode() + b"\n"


def hash_of(tree: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a line's canonical JSON without its own hash."""
    rest = {key: value for key, value in tree.items() if key != "hash"}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_chain(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number, from 1, and the content of every line.

    Raises:
        OutputError: a line is not as a ledger writes it.
    """
    file = file_of(folder)
    if not file.exists():
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                tree = json.loads(line)
                whole = (
                    isinstance(tree, dict)
                    and tree.keys() - UNUSUAL == FIELDS
                    and line_of(tree) == line
                )
            except ValueError:
                whole = False
            if not whole:
                torn = "" if line.endswith(b"\n") else "; a crash may have cut it"
                message = f"{file.name}, line {number} is not as it was written{torn}"
                raise OutputError(message)
            yield number, tree


def verify_chain(folder: Path) -> list[str]:
    """Return what is wrong with a ledger, in plain words; empty where nothing is.

    The agent may go on writing meanwhile: the head is read before the lines and after them.
    """
    previous, count, named = START, 0, ""
    before, finding = _head(folder)
    if finding:
        return [finding]
    try:
        for number, tree in read_chain(folder):
            if tree["hash"] != hash_of(tree):
                return [f"line {number} was changed: its content does not give its hash"]
            if tree["previous"] != previous:
                return [
                    f"line {number} does not follow the line before it: one is missing or moved"
                ]
            previous, count = tree["hash"], number
            named = previous if before and number == before[0] else named
    except OutputError as error:
        return [str(error)]
    after, finding = _head(folder)
    return [finding] if finding else _ends(count, named, before, after)


def _ends(
    count: int, named: str, before: tuple[int, str] | None, after: tuple[int, str] | None
) -> list[str]:
    """Compare the end of the chain with the head, which a crash may leave one line behind."""
    if before is None or after is None:
        missing = "egress.head is missing, so a cut at the end would not show"
        return [missing] if count or before or after else []
    if count < before[0]:
        return [f"{before[0] - count} lines are missing at the end"]
    if before[0] and named != before[1]:
        return [f"line {before[0]} is not the one that egress.head names"]
    if count > after[0] + 1:
        return [f"{count - after[0]} lines were added without egress.head"]
    return []


def _head(folder: Path) -> tuple[tuple[int, str] | None, str]:
    """Return the line count and last hash that the head file names, and what is wrong with it."""
    try:
        tree = json.loads(head_of(folder).read_bytes())
        return (int(tree["lines"]), str(tree["hash"])), ""
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, KeyError, TypeError):
        return None, "egress.head was changed: it holds no count and hash"
