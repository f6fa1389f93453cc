"""Read UTF-8 text files, compressed or not, with line numbers and bounded memory."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedwinnow.curation.errors import DataError

LONGEST = 64 * 2**20
"""Longest row of a text file, in bytes or characters: bounds the memory of a broken file."""
_MARKS = (b"\xff\xfe", b"\xfe\xff")
_GZIP = b"\x1f\x8b"


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each line with its number from 1, without a byte order mark.

    Raises:
        DataError: the file cannot be read, or a line is no UTF-8 or too long; names the line.
    """
    number = 0
    with named_faults(path) as file:
        while line := file.readline(LONGEST + 1):
            number += 1
            if len(line) > LONGEST:
                message = (
                    f"{path}: line {number}: longer than {LONGEST} bytes; end each row with a "
                    "line break"
                )
                raise DataError(message)
            try:
                yield number, line.decode()
            except UnicodeDecodeError as error:
                message = (
                    f"{path}: line {number}: not UTF-8 ({error.reason}); convert the file to UTF-8"
                )
                raise DataError(message) from error


@contextmanager
def named_faults(path: Path) -> Iterator["io.BufferedReader[Any]"]:
    """Open a file behind its byte order mark; name whatever is wrong with its bytes.

    Raises:
        DataError: the file is missing, unreadable, compressed unlike its ending, or UTF-16.
    """
    packed = path.name.lower().endswith(".gz")
    try:
        with path.open("rb") as raw:
            file: "io.BufferedReader[Any]" = raw
            if packed:
                file = io.BufferedReader(gzip.GzipFile(fileobj=raw))
            start = file.peek(4)[:4]
            if start.startswith(_GZIP):
                message = f"{path}: compressed by gzip; end its name with .gz"
                raise DataError(message)
            if start.startswith(_MARKS) or b"\0" in start:
                message = f"{path}: line 1: UTF-16 or UTF-32 text; convert the file to UTF-8"
                raise DataError(message)
            if start.startswith(b"\xef\xbb\xbf"):
                file.read(3)
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        message = f"{path}: broken gzip ({error}); write or copy the file anew"
        raise DataError(message) from error
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror}); change its permissions"
        raise DataError(message) from error
