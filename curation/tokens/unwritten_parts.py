"""Find which parts of a conversation a chat template leaves out: tools, calls, results, thoughts.

A part is left out where a rendering does not hold the mark that stood in it. A template that
refuses the turns leaves nothing out: its refusal is the row's status.
"""

import json
import logging
from collections.abc import Mapping

from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.tokens.chat_templates import (
    ChatFormat,
    Dialect,
    Message,
    TemplateRefusal,
    tools_of,
)

logger = logging.getLogger(__name__)

_MARK = "\ue0f2"
"""Content of the part that is looked for: a private-use character that no template writes."""
_CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": f"find{_MARK}", "arguments": {"text": "a"}},
}
_TOOL = {
    "type": "function",
    "function": {
        "name": f"find{_MARK}",
        "description": "Find a text.",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}},
    },
}
_ASKS: Message = {"role": "user", "content": "a"}
_ANSWERS: Message = {"role": "assistant", "content": "b"}
_THOUGHTS = ("reasoning", "reasoning_content", "thinking")
PARTS: Mapping[str, tuple[Message, ...]] = {
    "tools": (_ASKS, _ANSWERS),
    "tool_calls": (_ASKS, {"role": "assistant", "content": "", "tool_calls": [_CALL]}),
    "turns of tools": (
        _ASKS,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{**_CALL, "function": {"name": "find", "arguments": {}}}],
        },
        {"role": "tool", "content": _MARK, "name": "find", "tool_call_id": "call00001"},
        _ANSWERS,
    ),
    **{key: (_ASKS, {**_ANSWERS, key: _MARK}) for key in _THOUGHTS},
}
"""Part → a conversation that holds it."""


def check_parts(chat: ChatFormat, dialect: Dialect, sample: Sample) -> None:
    """Warn once of each part of samples that a template leaves out.

    Raises:
        TemplateRefusal: the whole answer is a part that is left out.
    """
    for part in sorted(_parts_of(sample)):
        key = dialect.template or "", part
        if key not in chat.unwritten:
            chat.unwritten[key] = not _is_written(dialect, part)
            if chat.unwritten[key]:
                logger.warning(
                    "model.name: the model's chat template leaves out %s, so the model neither "
                    "reads nor learns them; take a model whose template writes them, or remove "
                    "them from the data", part,
                )  # fmt: skip
    left_out = chat.unwritten.get((dialect.template or "", "tool_calls"), False)
    if left_out and not sample.response.strip() and "tool_calls" in _keys(sample.response_details):
        message = "it leaves out the tool calls that are the whole answer"
        raise TemplateRefusal(message)


def _parts_of(sample: Sample) -> frozenset[str]:
    """Return which parts of ``PARTS`` a sample holds."""
    found = {"tools"} if tools_of(sample) else set()
    for turn in sample.conversation:
        if turn.role == "tool":
            found.add("turns of tools")
        if turn.details:
            found |= _keys(turn.details)
    return frozenset(found & PARTS.keys())


def _keys(details: str) -> set[str]:
    return set(json.loads(details)) if details else set()


def _is_written(dialect: Dialect, part: str) -> bool:
    """Return whether a template writes a part or refuses it, with or without a system turn."""
    tools = [_TOOL] if part == "tools" else []
    system: Message = {"role": "system", "content": "c"}
    for turns in (PARTS[part], (system, *PARTS[part])):
        try:
            if _MARK in dialect.render(turns, tools):
                return True
        except TemplateRefusal:
            if turns is PARTS[part]:
                return True
    return False
