"""Tokenise rendered texts whole, and find the tokens of character spans.

A span's first token is the one that holds its first character, so a token across the border of
prompt and body is the body's. The end of turn begins with the first token that begins at or after
its first character.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from fedwinnow.curation.tokens.answer_spans import Rendering, Span
from fedwinnow.curation.tokens.chat_templates import ChatFormat


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
    """Find the spans' tokens by the tokenizer's offsets, and leave the mark's tokens out."""
    places = _Places(chat, rendering.text, encoding)
    spans = [
        Span(places.after(begin), places.since(body_end), places.since(end))
        for begin, body_end, end in rendering.spans
    ]
    spans = [Span(begin, max(b, begin), max(e, b, begin)) for begin, b, e in spans]
    if not mark:
        return Tokenized(encoding.ids, tuple(spans))
    covered = places.covered_by(mark)
    kept = [token for i, token in enumerate(encoding.ids) if i not in covered]
    written = sum(1 for _ in chat.control.finditer(rendering.text))
    if not covered or sum(token in chat.control_ids for token in kept) != written:
        return _in_regions(chat, rendering, mark)
    before = [0, *accumulate(i not in covered for i in range(len(encoding.ids)))]
    return Tokenized(kept, tuple(Span(*(before[place] for place in span)) for span in spans))


@dataclass(frozen=True, slots=True)
class _Places:
    """Tokens of a text by the places of its characters.

    A token's first character is the one after the token before it: white space that offsets leave
    out belongs to the token that follows. The tokens of one character of several bytes share it.
    """

    chat: ChatFormat
    text: str
    encoding: Any

    def after(self, place: int) -> int:
        """Return the first token that ends after a place."""
        found = (self.encoding.char_to_token(p) for p in range(place, len(self.text)))
        token = next((one for one in found if one is not None), len(self.encoding.ids))
        while token > 0 and self.encoding.token_to_chars(token - 1)[1] > place:
            token -= 1
        return int(token)

    def since(self, place: int) -> int:
        """Return the first token that begins at or after a place, or is a control token there.

        A control token may take white space before it along.
        """
        token = self.after(place)
        if token in {0, len(self.encoding.ids)}:
            return token
        ends = self.encoding.token_to_chars(token - 1)[1]
        straddles = min(self.encoding.token_to_chars(token)[0], ends) < place
        return token + (straddles and self.encoding.ids[token] not in self.chat.control_ids)

    def covered_by(self, mark: str) -> frozenset[int]:
        """Return the tokens of a character; none where a token holds more than it."""
        covered = set[int]()
        place = self.text.find(mark)
        while place >= 0:
            token = self.after(place)
            while token < len(self.encoding.ids):
                begin, end = self.encoding.token_to_chars(token)
                if begin > place:
                    break
                if (begin, end) != (place, place + 1):
                    return frozenset()
                covered.add(token)
                token += 1
            place = self.text.find(mark, place + 1)
        return frozenset(covered)


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
