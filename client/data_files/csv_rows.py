"""Read CSV strictly: every row has the header's fields, and every value is a text.

Quotes may hold separators, line breaks and doubled quotes (RFC 4180). A blank line is no row. Empty
fields beyond the header are dropped, as some programs end each line with a separator; any other
difference from the header would shift values into other columns, and is an error.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedwinnow.client.data_files.rows import Row
from fedwinnow.client.data_files.text_lines import LONGEST, text_lines
from fedwinnow.curation.errors import DataError
from fedwinnow.curation.tabular import counted

_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}


def csv_rows(path: Path, separator: str) -> Iterator[Row]:
    """Yield the rows of a file with a header; an unnamed column has the name "".

    Raises:
        DataError: the file, its header or a row is at fault; names the line.
    """
    header: list[str] = []
    for line, fields in _records(path, separator):
        if not header:
            header = _header(path, line, fields, separator)
            continue
        place = f"{path}: line {line}"
        yield Row(place, dict(zip(header, _fitted(fields, header, place, separator), strict=True)))


def _records(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the fields of each record that is no blank line."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))
    reader = csv.reader((text for _, text in text_lines(path)), delimiter=separator, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            place = f"{path}: line {first}"
            raise _broken(place, str(error)) from error
        if fields is None:
            return
        if fields:
            yield first, fields


def _broken(place: str, why: str) -> DataError:
    if "new-line character" in why:
        return DataError(
            f"{place}: broken CSV (a carriage return without a line feed, outside quotes); save "
            "the file with the line ends of Windows or Unix, or quote the field"
        )
    return DataError(
        f"{place}: broken CSV ({why}) in the row that begins here; quote each field that holds a "
        'quote or a line break, and double the quotes in it ("")'
    )


def _header(path: Path, line: int, fields: list[str], separator: str) -> list[str]:
    """Return the column names, less empty ones at the end.

    Raises:
        DataError: a name is there twice, none is there, or another separator parts them.
    """
    names = list(fields)
    while names and not names[-1]:
        names.pop()
    place = f"{path}: line {line}"
    if names and line == 1 and re.fullmatch("sep=.?", names[0].lower()):
        message = f"{place}: a line for Excel ({names[0]}), not a header; remove the line"
        raise DataError(message)
    if not names:
        message = f"{place}: the header names no column; write the column names there"
        raise DataError(message)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        said = ", ".join(repr(name) for name in twice)
        message = f"{place}: the header holds {said} more than once; give each column its own name"
        raise DataError(message)
    other = next((s for s in _SEPARATORS if s != separator and s in names[0]), "")
    if len(names) == 1 and other:
        ending = ".tsv" if other == "\t" else ".csv, parted by commas"
        message = (
            f"{place}: the header is one column that holds {_SEPARATORS[other]}, and fields are "
            f"parted by {_SEPARATORS[separator]}; save the file as {ending}"
        )
        raise DataError(message)
    return names


def _fitted(
    fields: Sequence[str], header: Sequence[str], place: str, separator: str
) -> Sequence[str]:
    """Return the fields of the header's columns; refuse any that would shift."""
    if len(fields) < len(header) or any(fields[len(header) :]):
        expected = f"{counted(len(header), 'field')} ({', '.join(header)})"
        message = (
            f"{place}: expected {expected}, got {len(fields)}; "
            f"quote a field that holds {_SEPARATORS[separator]}, or mend the row"
        )
        raise DataError(message)
    return fields[: len(header)]
