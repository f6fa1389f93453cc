"""Read a conversation from a cell: the last exchange, and every turn before and inside it.

prompt = last user turn before the last assistant turn; response = that assistant turn; history =
turns before the prompt; followup = turns between the two. Nothing between the first turn and the
response is lost.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fedwinnow.curation.datatypes import Turn
from fedwinnow.curation.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a model reads and learns of one row."""

    prompt: str
    response: str
    history: tuple[Turn, ...] = ()
    followup: tuple[Turn, ...] = ()
    response_details: str = ""
    tools: str = ""


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


def read_conversation(turns: object, place: str) -> Conversation:
    """Return the conversation of a chat's cell.

    Raises:
        DataError: the cell is no list of {role, content} texts, or has no answer to a question.
    """
    form = isinstance(turns, list) and all(
        isinstance(turn, Mapping)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str)
        for turn in turns
    )
    if not isinstance(turns, list) or not form:
        got = "other turns" if isinstance(turns, list) else type(turns).__name__
        message = f"{place}: expected a list of {{role, content}} texts, got {got}; mend the cell"
        raise DataError(message)
    read = [
        Turn(plain_text(turn["role"], place), plain_text(turn["content"], place)) for turn in turns
    ]
    answers = [i for i, turn in enumerate(read) if turn.role == "assistant"]
    if not answers:
        message = f"{place}: the chat has no assistant turn; there is nothing to learn from it"
        raise DataError(message)
    last = answers[-1]
    asked = [i for i, turn in enumerate(read[:last]) if turn.role == "user"]
    if not asked:
        message = f"{place}: no user turn stands before the last assistant turn; add the question"
        raise DataError(message)
    first = asked[-1]
    return Conversation(
        history=tuple(read[:first]),
        prompt=read[first].content,
        followup=tuple(read[first + 1 : last]),
        response=read[last].content,
    )
