"""Find where the answers stand in a rendered conversation, by differencing renderings.

    text = … [begin, body_end) body … [body_end, end) end of turn …

Most renderings end with the opening, the answer and the tail that the template's plain exchange
showed (``curation/tokens/chat_templates.py``): one rendering is enough. Where the template changes
the answer (strips it, drops thoughts, adds tool calls), the answer begins after the generation
prompt if that is a prefix of the text, else where a rendering with another answer departs from it.
"""

import os.path
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedwinnow.curation.tokens.chat_templates import (
    Dialect,
    Message,
    TemplateRefusal,
    texts_in,
    unused_character,
)


class Span(NamedTuple):
    """Where an answer stands, in characters or in tokens."""

    begin: int
    body_end: int
    """End of the body, and start of the end of turn."""
    end: int


class Rendering(NamedTuple):
    """A rendered conversation."""

    text: str
    spans: tuple[Span, ...]
    """Answers that are learnt, in order; the last is the response."""
    needs_eos: bool
    """Whether the tokenizer's EOS has to end the response."""


def render_answers(
    dialect: Dialect,
    messages: Sequence[Message],
    tools: Sequence[Any],
    control: re.Pattern[str],
    *,
    every: bool,
) -> Rendering:
    """Render a conversation that ends with an answer, and find the answers that are learnt.

    Args:
        dialect: The template.
        messages: The conversation.
        tools: Tools that the model may call.
        control: Matches the text of a control token.
        every: Whether the earlier answers are learnt too; those that hold nothing are not.

    Raises:
        TemplateRefusal: the template does not render the turns.
    """
    text = dialect.render(messages, tools)
    response, closed = _last_answer(dialect, messages, tools, control, text)
    spans = [response]
    if every:
        earlier = [
            _earlier_answer(dialect, messages, place, tools, control, text)
            for place, message in enumerate(messages[:-1])
            if message["role"] == "assistant"
        ]
        for span in reversed([span for span in earlier if span is not None]):
            body = text[span.begin : span.body_end].removeprefix(dialect.lead)
            if body.strip() and span.end <= spans[0].begin:  # a template may move turns about
                spans.insert(0, span)
    return Rendering(text, tuple(spans), not closed)


def _last_answer(
    dialect: Dialect,
    messages: Sequence[Message],
    tools: Sequence[Any],
    control: re.Pattern[str],
    text: str,
) -> tuple[Span, bool]:
    """Return where the last answer stands in ``text``, and whether a marker ends its turn."""
    content, closed = messages[-1]["content"], bool(dialect.end)
    body_end = len(text) - len(dialect.tail)
    if text.endswith(dialect.tail):
        rest, end = text[:body_end], body_end + len(dialect.end)
        for written in (content, content.strip()):
            if dialect.opening and rest.endswith(dialect.opening + dialect.lead + written):
                return Span(body_end - len(written) - len(dialect.lead), body_end, end), closed
    begin = _answer_begin(dialect, messages, tools, text)
    if text.endswith(dialect.tail) and begin <= body_end and closed:
        return Span(begin, body_end, body_end + len(dialect.end)), True
    marks = [one for one in control.finditer(text, begin) if not text[one.end() :].strip()]
    if marks:  # an end of its own, such as that of a turn that calls a tool
        return Span(begin, marks[0].start(), marks[0].end()), True
    body_end = max(begin, body_end if text.endswith(dialect.tail) else len(text))
    return Span(begin, body_end, body_end), False


def _answer_begin(
    dialect: Dialect, messages: Sequence[Message], tools: Sequence[Any], text: str
) -> int:
    """Return where the last answer begins in its rendering ``text``."""
    try:
        prompt = dialect.render(messages[:-1], tools, generation=True)
    except TemplateRefusal:
        prompt = text + "\0"  # no prefix: the template wants an answer to every question
    if text.startswith(prompt):
        return len(prompt)
    return _departure(dialect, messages, len(messages) - 1, tools, text)[0]


def _departure(
    dialect: Dialect, messages: Sequence[Message], place: int, tools: Sequence[Any], text: str
) -> tuple[int, int]:
    """Return where ``text`` departs from, and meets again, a rendering with another content."""
    mark = unused_character([text, *texts_in(list(messages)), *texts_in(list(tools))])
    marked = {**messages[place], "content": mark}
    other = dialect.render([*messages[:place], marked, *messages[place + 1 :]], tools)
    begin = _common_prefix(text, other)
    after = _common_prefix(text[begin:][::-1], other[begin:][::-1])
    return begin, len(text) - after


def _earlier_answer(
    dialect: Dialect,
    messages: Sequence[Message],
    place: int,
    tools: Sequence[Any],
    control: re.Pattern[str],
    text: str,
) -> Span | None:
    """Return where an earlier answer stands in the whole ``text``; None where it is dropped."""
    try:
        part = dialect.render(messages[: place + 1], tools)
        span, _ = _last_answer(dialect, messages[: place + 1], tools, control, part)
        if text.startswith(part[: span.end]):
            return span
    except TemplateRefusal:  # half a conversation may be refused where the whole is not
        pass
    begin, after = _departure(dialect, messages, place, tools, text)
    if begin == len(text):
        return None
    if not dialect.end:
        return Span(begin, after, after)
    body_end = text.find(dialect.end, after)
    return None if body_end < 0 else Span(begin, body_end, body_end + len(dialect.end))


def _common_prefix(one: str, other: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    return len(os.path.commonprefix([one, other]))  # noqa: RUF071 - of texts, not of paths
