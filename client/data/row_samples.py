"""Make a sample of a raw row, and count what no column setting reads.

The settings name the columns (``[sites.columns]``). A column that they do not name and that holds
something is counted, as are the parts of a chat that no model reads; so nothing is left out without
a word.
"""

from collections.abc import Mapping
from itertools import islice
from typing import Any

from fedwinnow.client.data.content_id import content_id
from fedwinnow.client.data.conversations import Conversation, read_conversation
from fedwinnow.client.data.turns import plain_text, read_tools
from fedwinnow.client.data_files.rows import Row, named
from fedwinnow.curation.config.prompt_template import fill_template, template_columns
from fedwinnow.curation.config.scoring import ColumnsSection
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import DataError
from fedwinnow.curation.tabular import counted

_MOST_NAMES = 1000
"""Names that are counted apart: rows of ever new names must not fill the memory."""
_SHOWN = 12


class RowReader:
    """Reader of one source's rows."""

    def __init__(self, source: str, columns: ColumnsSection, domain: str) -> None:
        self._source = source
        self._columns = columns
        self._domain = domain
        self._template = template_columns(columns.prompt_template) or ()
        chat = (columns.messages,) if columns.messages else ()
        self._needed = chat or (*(() if self._template else (columns.prompt,)), columns.response)
        self._needed += (*([columns.domain] if columns.domain else []), *columns.labels)
        self._sparse = (*self._template, *([columns.tools] if columns.tools else []))
        self._used = {*self._needed, *self._sparse}
        self._seen: dict[str, int] = {}
        self._unread: dict[str, tuple[int, str]] = {}

    def sample(self, row: Row) -> Sample:
        """Return the sample of a row.

        Raises:
            DataError: a column is missing or holds something else than expected.
        """
        columns, values, place = self._columns, row.values, row.place
        self._count(values)
        for name in self._needed:
            if name not in values:
                raise _missing(place, name, tuple(values), "map the names in columns")
        chat = self._chat(row)
        for what in chat.unread:
            known = what in self._unread or len(self._unread) < _MOST_NAMES
            kind = what if known else "other keys of turns"
            number, first = self._unread.get(kind, (0, place))
            self._unread[kind] = (number + 1, first)
        tools = values.get(columns.tools) if columns.tools else None
        tools = read_tools(tools, f"{place}, {columns.tools}")
        own = _label(values[columns.domain], f"{place}, {columns.domain}") if columns.domain else ""
        return Sample(
            id=content_id(
                chat.history,
                chat.prompt,
                chat.response,
                followup=chat.followup,
                response_details=chat.response_details,
                tools=tools,
            ),
            prompt=chat.prompt,
            response=chat.response,
            domain=own or self._domain,
            history=chat.history,
            followup=chat.followup,
            response_details=chat.response_details,
            tools=tools,
            train_on=columns.train_on,
            labels={name: _label(values[name], f"{place}, {name}") for name in columns.labels},
        )

    def check_columns(self) -> None:
        """Refuse a column of the template or of the tools that no row had.

        Raises:
            DataError: names the column and those that there are.
        """
        for name in self._sparse:
            if name not in self._seen:
                setting = "prompt_template" if name in self._template else "tools"
                message = (
                    f"{self._source}: no row has column {name!r}, which columns.{setting} names; "
                    f"there are {named(self._seen)}; mend columns.{setting}"
                )
                raise DataError(message)

    @property
    def described(self) -> str:
        """Return in words which column is read as what."""
        columns = self._columns
        prompt = columns.prompt_template or columns.prompt
        said = {"chat": columns.messages} if columns.messages else {}
        said = said or {"prompt": repr(prompt), "response": columns.response}
        labels = ", ".join(columns.labels)
        more = {"tools": columns.tools, "domain": columns.domain, "labels": labels}
        said |= {what: name for what, name in more.items() if name}
        return ", ".join(f"{what} from {name}" for what, name in said.items())

    def notes(self) -> tuple[str, ...]:
        """Return in words what was not read and holds something."""
        found = [
            f"{named([name]) if name else '(without a name)'} ({counted(number, 'row')})"
            for name, number in self._seen.items()
            if number and name not in self._used
        ]
        hidden = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        notes = []
        if found:
            notes.append(
                f"{self._source}: columns that are not read: {', '.join(found[:_SHOWN])}{hidden}; "
                "columns.prompt_template, tools, domain and labels can name them"
            )
        for what, (number, first) in islice(self._unread.items(), _SHOWN):
            notes.append(
                f"{self._source}: not read: {what}, in {counted(number, 'row')}, first in "
                f"{first.removeprefix(self._source).removeprefix(': ')}"
            )
        if len(self._unread) > _SHOWN:
            notes.append(
                f"{self._source}: not read: {len(self._unread) - _SHOWN} more keys of turns"
            )
        return tuple(notes)

    def _chat(self, row: Row) -> Conversation:
        columns, values, place = self._columns, row.values, row.place
        if columns.messages:
            cell = values[columns.messages]
            return read_conversation(
                cell, f"{place}, {columns.messages}", train_on=columns.train_on
            )
        return Conversation(
            prompt=self._prompt(values, place),
            response=plain_text(values[columns.response], f"{place}, {columns.response}"),
        )

    def _prompt(self, values: Mapping[str, Any], place: str) -> str:
        if not self._template:
            name = self._columns.prompt
            return plain_text(values[name], f"{place}, {name}")
        if not any(name in values for name in self._template):
            raise _missing(place, self._template[0], tuple(values), "mend columns.prompt_template")
        texts = {name: plain_text(values.get(name), f"{place}, {name}") for name in self._template}
        return fill_template(self._columns.prompt_template, texts)

    def _count(self, values: Mapping[str, Any]) -> None:
        """Count the rows in which each column holds something."""
        for name, value in values.items():
            known = name if name in self._seen or len(self._seen) < _MOST_NAMES else "…"
            empty = value is None or (isinstance(value, str | list | dict) and not value)
            self._seen[known] = self._seen.get(known, 0) + (not empty)


def _missing(place: str, name: str, there: tuple[str, ...], cure: str) -> DataError:
    return DataError(f"{place}: column {name!r} is missing; there are {named(there)}; {cure}")


def _label(value: object, place: str) -> str:
    """Return a label of any plain type as text."""
    if isinstance(value, list | dict | bytes) or value != value:  # noqa: PLR0124 - NaN is no label
        got = type(value).__name__ if value == value else "NaN"  # noqa: PLR0124 - as above
        message = f"{place}: expected a text or a number, got {got}; mend the cell"
        raise DataError(message)
    return "" if value is None else plain_text(str(value), place)
