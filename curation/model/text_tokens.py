"""Tokenise rendered texts whole, and find the tokens of character spans.

A span's first token is the one that holds its first character, so a token across the border of
prompt and body is the body's. The end of turn begins with the first token that begins at or after
its first character.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedwinnow.curation.model.answer_spans import Rendering, Span
from fedwinnow.curation.model.chat_templates import ChatFormat


class Tokenized(NamedTuple):
    """A text as tokens, up to the end of its response's turn."""

    tokens: list[int]
    spans: tuple[Span, ...]
    """Answers, as places of tokens."""


def tokenize(chat: ChatFormat, rendered: Sequence[tuple[Rendering, str]]) -> list[Tokenized]:
    """Tokenise renderings in one call, each with the character that parts control tokens, or "".

    Raises:
        ValueError: the tokenizer cannot encode a text.
    """
    if not rendered:
        return []
    if not getattr(chat.tokenizer, "is_fast", False):
        return [_closed(chat, one, _in_regions(chat, one, mark)) for one, mark in rendered]
    texts = [one.text for one, _ in rendered]
    found = chat.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
    return [
        _closed(chat, one, _with_offsets(chat, one, mark, encoding))
        for (one, mark), encoding in zip(rendered, found.encodings, strict=True)
    ]


def _closed(chat: ChatFormat, rendering: Rendering, found: Tokenized) -> Tokenized:
    """Cut the tokens after the response's end of turn, or let the tokenizer's EOS end it."""
    *earlier, last = found.spans
    eos = chat.tokenizer.eos_token_id
    closing = [int(eos)] if rendering.needs_eos and eos is not None else []
    tokens = [*found.tokens[: last.end], *closing]
    return Tokenized(tokens, (*earlier, last._replace(end=len(tokens))))


def _with_offsets(chat: ChatFormat, rendering: Rendering, mark: str, encoding: Any) -> Tokenized:  # noqa: ANN401 - tokenizers has no types
    """Find the spans' tokens by the tokenizer's offsets."""
    if not mark and rendering.text:
        spans = [_quick_span(chat, rendering.text, span, encoding) for span in rendering.spans]
        if None not in spans:
            return Tokenized(encoding.ids, tuple(span for span in spans if span is not None))
    ids = encoding.ids
    begins, ends = _borders(encoding.offsets)
    if mark:
        covered = [mark in rendering.text[b:e] for b, e in zip(begins, ends, strict=True)]
        kept = [i for i, cover in enumerate(covered) if not cover]
        alone = all(ends[i] - begins[i] == 1 for i, cover in enumerate(covered) if cover)
        ids = [ids[i] for i in kept]
        begins, ends = [begins[i] for i in kept], [ends[i] for i in kept]
        written = sum(1 for _ in chat.control.finditer(rendering.text))
        if not alone or sum(token in chat.control_ids for token in ids) != written:
            return _in_regions(chat, rendering, mark)
    spans_found = []
    for span in rendering.spans:
        begin = bisect_left(ends, span.begin + 1)
        body_end = max(begin, bisect_left(begins, span.body_end))
        end = max(body_end, bisect_left(begins, span.end))
        if body_end > begin and ends[body_end - 1] > span.body_end:
            body_end -= ids[body_end - 1] in chat.control_ids
        spans_found.append(Span(begin, body_end, end))
    return Tokenized(ids, tuple(spans_found))


def _quick_span(chat: ChatFormat, text: str, span: Span, encoding: Any) -> Span | None:  # noqa: ANN401 - see _with_offsets
    """Return a span's tokens by look-ups; None where a character has no token of its own."""
    places = (span.begin, span.body_end, max(span.body_end, 1) - 1, max(span.end, 1) - 1)
    number = len(encoding.ids)
    tokens = [encoding.char_to_token(p) if p < len(text) else number for p in places]
    if None in tokens:
        return None
    begin, body_end, before, last = tokens
    if span.begin == span.body_end:
        body_end = begin
    elif body_end == before and encoding.ids[before] not in chat.control_ids:
        body_end += 1  # the token holds characters of the body too
    end = last + 1 if span.end > span.body_end else body_end
    return Span(begin, body_end, max(end, body_end))


def _borders(offsets: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Return where tokens begin and end; white space that offsets leave out goes to the next one.

    The tokens of one character of several bytes share its place.
    """
    begins, ends, reached = list[int](), list[int](), 0
    for begin, end in offsets:
        begins.append(min(begin, reached))
        ends.append(max(end, reached))
        reached = ends[-1]
    return begins, ends


def _in_regions(chat: ChatFormat, rendering: Rendering, mark: str) -> Tokenized:
    """Tokenise region by region, and each region piece by piece between the marks."""
    places = sorted({0, *(place for span in rendering.spans for place in span)})
    tokens, known, start = list[int](), {0: 0}, 0
    for place in places:
        region = rendering.text[start:place]
        for piece in region.split(mark) if mark else [region]:
            if piece:
                found = chat.tokenizer(piece, add_special_tokens=False)
                tokens += [int(token) for token in found["input_ids"]]
        known[place], start = len(tokens), place
    spans = tuple(Span(*(known[place] for place in span)) for span in rendering.spans)
    return Tokenized(tokens, spans)
