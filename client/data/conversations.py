"""Read a conversation from a cell: the last exchange, and every turn before and inside it.

prompt = last user turn before the last assistant turn; response = that assistant turn; history =
turns before the prompt; followup = turns between the two. Nothing between the first turn and the
response is lost but what ``unread`` names.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedwinnow.client.data.turns import ReadTurn, read_turn, shown_name
from fedwinnow.client.data_files.json_rows import strict_json
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
    unread: tuple[str, ...] = ()
    """Parts of the chat that no model reads, in words."""


def read_conversation(
    cell: object, place: str, *, train_on: Literal["last", "all"] = "last"
) -> Conversation:
    """Return the conversation of a chat's cell: a list of turns, or one as JSON text.

    Args:
        cell: The cell's value.
        place: File, line and column, for errors.
        train_on: Assistant turns that the loss covers; flags of the turns must say the same.

    Raises:
        DataError: the cell is no list of turns, has no answer to a question, or a turn's flag
            (``weight``, ``train``) contradicts ``train_on``.
    """
    turns = [
        read_turn(turn, f"{place}, turn {i}") for i, turn in enumerate(_listed(cell, place), 1)
    ]
    read = [found.turn for found in turns]
    answers = [i for i, turn in enumerate(read) if turn.role == "assistant"]
    if not answers:
        roles = ", ".join(dict.fromkeys(shown_name(turn.role) for turn in read)) or "none"
        message = (
            f"{place}: the chat has no assistant turn (roles: {roles}); there is nothing to learn "
            "from it"
        )
        raise DataError(message)
    last = answers[-1]
    asked = [i for i, turn in enumerate(read[:last]) if turn.role == "user"]
    if not asked:
        message = f"{place}: no user turn stands before the last assistant turn; add the question"
        raise DataError(message)
    first = asked[-1]
    _check_flags(turns[: last + 1], place, train_on)
    unread = [f"{name} of the last question" for name in _keys(read[first].details)]
    keys = dict.fromkeys(key for found in turns[: last + 1] for key in found.unread)
    unread += [f"key {key} of turns" for key in keys]
    unread += ["turns after the last answer"] if len(read) > last + 1 else []
    return Conversation(
        history=tuple(read[:first]),
        prompt=read[first].content,
        followup=tuple(read[first + 1 : last]),
        response=read[last].content,
        response_details=read[last].details,
        unread=tuple(unread),
    )


def _listed(cell: object, place: str) -> list[object]:
    """Return the turns of a cell, which may be JSON text."""
    turns = cell
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            turns = strict_json(cell)
        except (ValueError, RecursionError) as error:
            message = f"{place}: broken JSON ({error}); mend the cell"
            raise DataError(message) from error
    if not isinstance(turns, list):
        got = type(turns).__name__
        message = f"{place}: expected a list of {{role, content}} turns, got {got}; mend the cell"
        raise DataError(message)
    return turns


def _check_flags(turns: Sequence[ReadTurn], place: str, train_on: Literal["last", "all"]) -> None:
    """Refuse a turn whose flag says otherwise than ``columns.train_on`` whether it is learnt."""
    for number, (turn, learnt, _) in enumerate(turns, start=1):
        is_learnt = turn.role == "assistant" and (train_on == "all" or number == len(turns))
        if learnt is not None and learnt != is_learnt:
            flag, does = ("learnt", "not learnt") if learnt else ("not learnt", "learnt")
            message = (
                f"{place}, turn {number}: its weight says {flag}, and columns.train_on = "
                f"{train_on!r} makes it {does}; change train_on, or remove the flags or the row"
            )
            raise DataError(message)


def _keys(details: str) -> list[str]:
    """Return the names in a turn's details."""
    return list(json.loads(details)) if details else []
