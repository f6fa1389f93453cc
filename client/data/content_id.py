"""Return the id of a content: a hash of all that the model reads and learns of a sample."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any


def content_id(
    history: Sequence[Sequence[str]],
    prompt: str,
    response: str,
    *,
    followup: Sequence[Sequence[str]] = (),
    response_details: str = "",
    tools: str = "",
) -> str:
    """Return a content's id: 32 hex digits of a SHA-256 over all that the model reads.

    Args:
        history: Turns before the prompt.
        prompt: Last user turn.
        response: Last assistant turn.
        followup: Turns between them.
        response_details: What the last assistant turn holds beside its text.
        tools: Tools that the model may call.
    """
    content: list[Any] = [_told_turns(history), prompt, response]
    if followup or response_details or tools:  # a plain content keeps the id that it always had
        content.append([_told_turns(followup), _sorted(response_details), _sorted(tools)])
    text = json.dumps(content, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _told_turns(turns: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return turns as lists, without details where there are none."""
    return [[*turn[:2], *map(_sorted, filter(None, turn[2:]))] for turn in turns]


def _sorted(text: str) -> str:
    """Return JSON with its keys sorted, as Parquet and JSON may order them differently."""
    if not text:
        return ""
    try:
        return json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False)
    except ValueError:
        return text  # what a plug-in wrote there counts as it stands
