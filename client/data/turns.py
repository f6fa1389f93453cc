"""Read one turn of a chat: its role, its text, and what it holds beside the text.

Both spellings are read: {role, content} (OpenAI, Hugging Face) and {from, value} (ShareGPT). Nulls
count as absent, as a Parquet column fills the keys that a turn lacks with nulls; so JSON and
Parquet give equal turns.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fedwinnow.client.data_files.json_rows import strict_json
from fedwinnow.curation.datatypes import Turn
from fedwinnow.curation.errors import DataError

ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bot", "chatbot", "model", "ai"), "assistant"),
    **dict.fromkeys(("function", "observation", "tool_response"), "tool"),
    **{role: role for role in ("system", "user", "assistant", "tool")},
}
"""Names of roles, in lower case; a role that is not here keeps its name."""
CALLS = ("function_call", "tool_call")
"""Roles of turns whose text is a call, as JSON."""
DEEPEST = 64
"""Most levels of lists and objects in a turn's details or in tools."""
DETAILS = ("name", "reasoning", "reasoning_content", "thinking", "tool_call_id", "tool_calls")
"""Keys beside role and text that models read."""
FLAGS = ("weight", "train", "trainable", "loss")
"""Keys by which data sets say whether a turn is learnt."""


class ReadTurn(NamedTuple):
    """A turn, and what its data say beside it."""

    turn: Turn
    learnt: bool | None
    """Whether the data say that the turn is learnt; None where they say nothing of it."""
    unread: tuple[str, ...]
    """Other keys that hold something, which no model reads."""


def plain_text(value: object, place: str) -> str:
    """Return a cell's text; "" for an empty cell.

    Raises:
        DataError: the cell holds something else, or no valid Unicode; names the place.
    """
    if value is None:
        return ""  # an empty cell: the sample gets a status where its response is empty
    if not isinstance(value, str):
        message = f"{place}: expected a text, got {type(value).__name__}; mend the cell"
        raise DataError(message)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        message = f"{place}: no valid Unicode text ({error.reason}); mend the text"
        raise DataError(message) from error
    return value


def read_turn(cell: object, place: str) -> ReadTurn:
    """Return a turn of a chat.

    Raises:
        DataError: the turn has no role or text, or holds something that no text model reads.
    """
    if not isinstance(cell, Mapping):
        message = (
            f"{place}: expected a list of {{role, content}} turns, got {type(cell).__name__} as a "
            "turn; mend the cell"
        )
        raise DataError(message)
    held = {key: value for key, value in cell.items() if value is not None}
    role = _named_role(held, place)
    content = held.pop("content", None) if "content" in held else held.pop("value", None)
    learnt = _learnt(held, place)
    full: dict[str, Any] = {k: v for k, v in held.items() if v not in ("", [], {})}
    details = {key: value for key, value in full.items() if key in {*DETAILS, "function_call"}}
    if role.lower() in CALLS:  # ShareGPT: the call stands in the turn's text
        details["tool_calls"] = _calls_of(content, place)
        content = None
    elif "function_call" in details:
        if "tool_calls" in details:
            message = f"{place}: holds both function_call and tool_calls; keep one of them"
            raise DataError(message)
        details["tool_calls"] = [{"type": "function", "function": details.pop("function_call")}]
    if content is None and "tool_calls" not in details:
        message = (
            f"{place}: expected a list of {{role, content}} turns, got a turn without content; "
            "write its text"
        )
        raise DataError(message)
    text = _text(content, place)
    told = canonical_json(details, place) if details else ""
    unread = tuple(shown_name(key) for key in full if key not in {*DETAILS, "function_call"})
    role = "assistant" if role.lower() in CALLS else ROLES.get(role.lower(), role)
    return ReadTurn(Turn(role, text, told), learnt, unread)


def read_tools(cell: object, place: str) -> str:
    """Return a row's tools as a JSON list; "" for none.

    Raises:
        DataError: the cell holds no list of objects, nor one as JSON text.
    """
    value = _parsed(cell, place) if isinstance(cell, str) and cell.strip() else cell
    if value in (None, [], {}) or (isinstance(value, str) and not value.strip()):
        return ""
    if isinstance(value, list):
        value = [_parsed(tool, place) if isinstance(tool, str) else tool for tool in value]
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        message = (
            f"{place}: expected a list of tools (objects), or one as JSON text; mend the cell, or "
            'set columns.tools = ""'
        )
        raise DataError(message)
    return canonical_json(value, place)


def canonical_json(value: Any, place: str) -> str:  # noqa: ANN401 - a tree of whatever JSON holds
    """Return a value as compact JSON, its keys in order of appearance, nulls left out.

    Raises:
        DataError: it holds something that JSON does not, no valid Unicode, or too many levels.
    """
    if _is_deep(value):
        message = f"{place}: nested deeper than {DEEPEST} levels; mend or remove the row"
        raise DataError(message)
    try:
        text = json.dumps(
            without_nulls(value), ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
    except (TypeError, ValueError) as error:
        message = f"{place}: holds a value that JSON does not ({error}); mend the cell"
        raise DataError(message) from error
    return plain_text(text, place)


def without_nulls(value: Any) -> Any:  # noqa: ANN401 - a tree of whatever JSON holds
    """Return a tree without the keys whose value is null."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _is_deep(value: object) -> bool:
    """Return whether lists and objects are nested deeper than ``DEEPEST``."""
    level: list[object] = [value]
    for _ in range(DEEPEST):
        inner = [one.values() if isinstance(one, Mapping) else one for one in level
                 if isinstance(one, Mapping | list)]  # fmt: skip
        level = [item for items in inner for item in items]
        if not level:
            return False
    return True


def shown_name(name: object) -> str:
    """Return a name that data gave, for an error; a name's kind where it may be a text."""
    short = isinstance(name, str) and re.fullmatch(r"[\w-]{1,20}", name)
    return repr(name) if short else f"another {type(name).__name__}"


def _named_role(held: dict[str, Any], place: str) -> str:
    """Take the role out of a turn."""
    key = "role" if "role" in held else "from"
    role = held.pop(key, None)
    if not isinstance(role, str) or not role:
        message = (
            f"{place}: expected a list of {{role, content}} turns, got a turn without a role "
            f"({', '.join(map(shown_name, held)) or 'empty'}); mend the cell"
        )
        raise DataError(message)
    return plain_text(role, place)


def _text(content: object, place: str) -> str:
    """Return the text of a turn; parts of texts are joined as they are."""
    if not isinstance(content, list):
        return plain_text(content, place)
    texts = []
    for part in content:
        whole = part if isinstance(part, Mapping) else {}
        held = {key: value for key, value in whole.items() if value is not None}
        kind, text = held.pop("type", "text"), held.pop("text", None)
        if kind != "text" or not isinstance(text, str) or held:
            parts = ", ".join([shown_name(kind), *map(shown_name, held)])
            got = parts if isinstance(part, Mapping) else type(part).__name__
            message = (
                f"{place}: expected parts of type 'text' alone, got {got}; only texts can be scored"
            )
            raise DataError(message)
        texts.append(plain_text(text, place))
    return "".join(texts)


def _learnt(held: dict[str, Any], place: str) -> bool | None:
    """Take the flags out of a turn; return whether it is learnt."""
    said: set[bool] = set()
    for flag in FLAGS:
        value = held.pop(flag, None)
        if value is None:
            continue
        if value not in (0, 1):
            message = (
                f"{place}: {flag}: expected 0, 1, true or false, got another "
                f"{type(value).__name__}; mend the turn"
            )
            raise DataError(message)
        said.add(bool(value))
    if len(said) > 1:
        message = f"{place}: {' and '.join(FLAGS)} contradict each other; keep one of them"
        raise DataError(message)
    return said.pop() if said else None


def _calls_of(content: object, place: str) -> list[Any]:
    """Return the tool calls that stand as JSON in a ShareGPT turn."""
    calls = _parsed(content, place)
    listed = calls if isinstance(calls, list) else [calls]
    if not listed or not all(isinstance(call, Mapping) and "name" in call for call in listed):
        message = f"{place}: expected a call as JSON, {{name, arguments}}; mend the turn"
        raise DataError(message)
    return [{"type": "function", "function": call} for call in listed]


def _parsed(text: object, place: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    try:
        return strict_json(plain_text(text, place))
    except (ValueError, RecursionError) as error:
        message = f"{place}: expected JSON ({error}); mend the cell"
        raise DataError(message) from error
