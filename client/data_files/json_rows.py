"""Read JSON objects strictly, one a line (.jsonl) or as a list (.json), each with its own text.

Strict: UTF-8, no NaN or Infinity, no key twice in one object. A ``.json`` file holds one list of
objects, or objects one after the other; it is read piece by piece, never as a whole.
"""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedwinnow.client.data_files.rows import Row
from fedwinnow.client.data_files.text_lines import LONGEST, named_faults, text_lines
from fedwinnow.curation.errors import DataError

_PIECE = 2**20
_BLANK = " \t\r\n"
_CURE = "mend or remove the row"
_BREAKS = re.compile(r"[\r\n][ \t\r\n]*")


def strict_json(text: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Parse a JSON text.

    Raises:
        ValueError: it is no JSON, holds NaN or Infinity, or a key twice in one object.
        RecursionError: it is nested too deep.
    """
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)


def jsonl_rows(path: Path) -> Iterator[Row]:
    """Yield the object of each line; skip blank lines.

    Raises:
        DataError: a line holds no strict JSON object; names it.
    """
    for number, line in text_lines(path):
        text = line.strip(_BLANK)
        if text:
            place = f"{path}: line {number}"
            try:
                value = strict_json(text)
            except (ValueError, RecursionError) as error:
                raise _broken(place, error, _line_cure(error)) from error
            yield _row(place, value, text, "end a list's file name with .json")


def _line_cure(error: Exception) -> str:
    """Return what to change about a line: it may hold half an object, or more than one."""
    if isinstance(error, json.JSONDecodeError):
        if not error.doc[error.pos :].strip(_BLANK):
            return "write each object on one line, or end the file's name with .json"
        if error.msg == "Extra data":
            return "write one object a line, each line ended by a line feed"
    return _CURE


def json_rows(path: Path) -> Iterator[Row]:
    """Yield the objects of a list, or objects that follow one another.

    Raises:
        DataError: the file holds something else; names the line.
    """
    with named_faults(path) as file:
        window = _Window(path, io.TextIOWrapper(file, encoding="utf-8", newline=""))
        listed = window.next() == "["
        if listed:
            window.drop(1)
        while char := window.next():
            if listed and char == "]":
                break
            place = f"{path}: line {window.line}"
            value, text = window.value()
            yield _row(place, value, text, "write each row as an object of its columns")
            if listed and window.next() == ",":
                window.drop(1)
                if window.next() == "]":
                    window.fail("a comma stands before the end of the list")
            elif listed and window.next() != "]":
                window.fail("expected a comma or the end of the list")
        if listed:
            if not window.next():
                window.fail("the list has no end")
            window.drop(1)
            if window.next():
                window.fail("something follows the list")


class _Window:
    """Piece of a text file that holds at least the next value."""

    def __init__(self, path: Path, file: io.TextIOWrapper) -> None:
        self.path = path
        self.line = 1
        self._file = file
        self._text = ""
        self._at = 0
        self._decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)

    def next(self) -> str:
        """Return the next character that is not blank; "" at the end of the file."""
        while True:
            left = self._text[self._at : self._at + 64].lstrip(_BLANK)
            if left:
                self.drop(self._text.index(left[0], self._at) - self._at)
                return left[0]
            self.drop(min(64, len(self._text) - self._at))
            if self._at == len(self._text) and not self._more():
                return ""

    def drop(self, count: int) -> None:
        """Leave characters behind."""
        self.line += self._text.count("\n", self._at, self._at + count)
        self._at += count

    def value(self) -> tuple[Any, str]:
        """Return the next value and its text on one line; read on until it is whole."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if len(self._text) - self._at <= LONGEST and self._more():
                    continue
                line = self.line + self._text.count("\n", self._at, error.pos)
                raise self._broken(error, line) from error
            except (ValueError, RecursionError) as error:
                raise self._broken(error, self.line) from error
            text = self._text[self._at : end]
            self.drop(end - self._at)
            # a JSON string holds no bare line break, so these stand between values
            return value, _BREAKS.sub(" ", text)

    def fail(self, why: str) -> None:
        """Refuse the file at this line."""
        message = f"{self.path}: line {self.line}: broken JSON ({why}); mend the file"
        raise DataError(message)

    def _broken(self, error: Exception, line: int) -> DataError:
        return _broken(f"{self.path}: line {line}", error)

    def _more(self) -> bool:
        """Read as much again as is held; return False at the end of the file."""
        held = self._text[self._at :]
        try:
            more = self._file.read(max(_PIECE, len(held)))
        except UnicodeDecodeError as error:
            message = (
                f"{self.path}: line {self.line} or after: not UTF-8 ({error.reason}); convert the "
                "file to UTF-8"
            )
            raise DataError(message) from error
        self._text, self._at = held + more, 0
        return bool(more)


def _row(place: str, value: object, text: str, cure: str) -> Row:
    if not isinstance(value, dict):
        message = f"{place}: expected a JSON object, got {type(value).__name__}; {cure}"
        raise DataError(message)
    return Row(place, value, text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; refuse one that holds a key twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        message = f"key {twice!r} is there twice in one object"
        raise ValueError(message)
    return found


def _refuse_constant(name: str) -> None:
    message = f"{name} is no JSON; write null or a number"
    raise ValueError(message)


def _broken(place: str, error: Exception, cure: str = _CURE) -> DataError:
    why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    if "int_max_str_digits" in why:  # Python's own limit, whose cure is no cure of the file
        why = "a number of too many digits"
    return DataError(f"{place}: broken JSON ({why}); {cure}")
