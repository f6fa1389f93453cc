"""Encode samples as tokens: the chat template's own rendering, and where its answers stand.

tokens = what the tokenizer makes of the rendered conversation, whole, up to the response's end of
turn. The loss is on the response (body and end of turn), and on the earlier answers where
``Sample.train_on`` is "all". A token that straddles the border of prompt and body counts as body.
Where the template writes no token after an answer, the tokenizer's EOS ends it.

Text of a sample that spells a control token (``<|im_end|>``) is encoded as text: a private-use
character parts it while the conversation is rendered and tokenised, and its tokens are left out.

A tokenizer without offsets (a slow one) takes prompt, body and end of turn one by one.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Int32

from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.tokens.answer_spans import Rendering, Span, render_answers
from fedwinnow.curation.tokens.chat_templates import (
    ChatFormat,
    Message,
    TemplateRefusal,
    messages_of,
    texts_in,
    tools_of,
    unused_character,
)
from fedwinnow.curation.tokens.text_tokens import Tokenized, tokenize
from fedwinnow.curation.tokens.unwritten_parts import check_parts

BLOCK = 1024
"""Samples whose texts are tokenised in one call."""
_BARE = 2
"""Keys of a turn that holds nothing beside role and content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """One sample as tokens: prompt, response body, end of turn."""

    tokens: Int32[np.ndarray, " tokens"]
    response_start: int
    """Place of the body's first token, at least 1, so that something predicts it."""
    body_end: int
    """Body: ``tokens[response_start:body_end]``; what follows is the end of turn, absent where it
    was cut away."""
    earlier: tuple[Span, ...] = ()
    """Earlier answers that are learnt too, in order; none begins at 0."""
    refusal: str = ""
    """Why the chat template does not render the sample, which then has no target; ""."""

    @property
    def has_target(self) -> bool:
        """Return whether there is a body token to compute a loss on."""
        return self.body_end > self.response_start

    @property
    def targets(self) -> tuple[tuple[int, int], ...]:
        """Return the spans of all tokens that the loss is on: bodies and ends of turn."""
        earlier = tuple((span.begin, span.end) for span in self.earlier)
        return (*earlier, (max(self.response_start, 1), len(self.tokens)))

    @property
    def bodies(self) -> tuple[tuple[int, int], ...]:
        """Return the spans of the bodies that are learnt, the response's last."""
        earlier = tuple((span.begin, span.body_end) for span in self.earlier)
        return (*earlier, (self.response_start, self.body_end))

    @property
    def first_target(self) -> int:
        """Return the place of the first token that the loss is on."""
        return self.targets[0][0]


def encode_sample(
    tokenizer: Any,  # noqa: ANN401 - transformers' tokenizers share no typed base
    sample: Sample,
    *,
    max_length: int,
    system_prompt: str = "",
    chat: ChatFormat | None = None,
) -> Encoding:
    """Encode one sample, cut to ``max_length``.

    A sample that is too long loses the front of its prompt first, down to a quarter of
    ``max_length``; then the end of its response, and with it the end of turn. A response with any
    token keeps at least one.

    Args:
        tokenizer: Any tokenizer of transformers; without a chat template, a line break parts the
            turns.
        sample: The sample to encode.
        max_length: Longest result in tokens, at least 8.
        system_prompt: System message before everything; "" for none.
        chat: How the tokenizer's template writes an exchange, where the caller knows it.

    Returns:
        The tokens; without a target, and with a ``refusal``, where the template refuses the turns.

    Raises:
        ModelError: the tokenizer has no usable chat template, or it refuses the system prompt.
    """
    found = encode_samples(
        tokenizer, [sample], max_length=max_length, system_prompt=system_prompt, chat=chat
    )
    return next(found)


def encode_samples(
    tokenizer: Any,  # noqa: ANN401 - see encode_sample
    samples: Iterable[Sample],
    *,
    max_length: int,
    system_prompt: str = "",
    chat: ChatFormat | None = None,
) -> Iterator[Encoding]:
    """Encode samples as :func:`encode_sample` does, read and tokenised block by block.

    A fast tokenizer takes the texts of a block at once, on as many threads as there are processors.

    Raises:
        ModelError: see :func:`encode_sample`.
    """
    chat = ChatFormat.of(tokenizer) if chat is None else chat
    chat.check_system(system_prompt)
    rest = iter(samples)
    while block := list(islice(rest, BLOCK)):
        rendered = [_rendered(chat, sample, system_prompt) for sample in block]
        accepted = [one for one in rendered if not isinstance(one, TemplateRefusal)]
        found = iter(tokenize(chat, accepted))
        for one in rendered:
            if isinstance(one, TemplateRefusal):
                yield _refused(tokenizer, one)
            else:
                yield _cut(_begun(chat, next(found)), max_length)


def end_tokens(chat: ChatFormat) -> tuple[int, ...]:
    """Return the tokens that end the turn of a plain answer."""
    sample = Sample(id="", prompt="?", response="!")
    found = encode_sample(chat.tokenizer, sample, max_length=10**6, chat=chat)
    return tuple(found.tokens[found.body_end :].tolist())


def prompt_tokens(chat: ChatFormat, sample: Sample, system_prompt: str) -> list[int]:
    """Return the tokens after which the model answers the sample, uncut and at least one.

    Raises:
        TemplateRefusal: the template refuses the turns.
    """
    turns = messages_of(sample, system_prompt)[:-1]
    turns, tools, mark = _defused(chat, turns, tools_of(sample))
    dialect = chat.dialect(sample)
    text = (
        _plain_rendering(turns, tools)
        if dialect is None
        else dialect.render(turns, tools, generation=True)
    )
    whole = Span(len(text), len(text), len(text))
    (found,) = tokenize(chat, [(Rendering(text, (whole,), needs_eos=False), mark)])
    return _begun(chat, found).tokens


def _rendered(
    chat: ChatFormat, sample: Sample, system_prompt: str
) -> tuple[Rendering, str] | TemplateRefusal:
    """Return a sample's rendering and the character that parts control tokens in it, or ""."""
    turns, dialect = messages_of(sample, system_prompt), chat.dialect(sample)
    every = sample.train_on == "all"
    try:
        turns, tools, mark = _defused(chat, turns, tools_of(sample))
        if dialect is None:
            return _without_template(turns, tools, every=every), mark
        check_parts(chat, dialect, sample)
        return render_answers(dialect, turns, tools, chat.control, every=every), mark
    except TemplateRefusal as refusal:
        return refusal


def _defused(
    chat: ChatFormat, turns: list[Message], tools: list[Any]
) -> tuple[list[Message], list[Any], str]:
    """Part every text that spells a control token by an unused character; return that too."""
    texts = [
        text
        for turn in turns
        for text in ((turn["content"],) if len(turn) == _BARE else texts_in(turn))
    ]
    texts.extend(texts_in(tools))
    if not any(map(chat.control.search, texts)):
        return turns, tools, ""
    mark = unused_character(texts)
    parted = [
        {**_parted(turn, chat.control, mark), "role": turn["role"]}  # a role is no content
        for turn in turns
    ]
    return parted, _parted(tools, chat.control, mark), mark


def _parted(value: Any, control: re.Pattern[str], mark: str) -> Any:  # noqa: ANN401 - a JSON tree
    """Return a tree whose texts spell no control token: ``mark`` stands after its first letter."""
    if isinstance(value, str):
        while control.search(value):  # tokens may overlap
            value = control.sub(lambda found: f"{found[0][0]}{mark}{found[0][1:]}", value)
        return value
    if isinstance(value, dict):
        return {name: _parted(inner, control, mark) for name, inner in value.items()}
    if isinstance(value, list):
        return [_parted(inner, control, mark) for inner in value]
    return value


def _without_template(turns: Sequence[Message], tools: Sequence[Any], *, every: bool) -> Rendering:
    """Render a conversation line by line, and find its answers."""
    spans = []
    for place, turn in enumerate(turns):
        if turn["role"] == "assistant" and (every or place == len(turns) - 1):
            begin = len(_plain_rendering(turns[:place], tools))
            end = begin + len(_plain_turn(turn))
            spans.append(Span(begin, end, end))
    text = _plain_rendering(turns[:-1], tools) + _plain_turn(turns[-1])
    return Rendering(text, tuple(spans), needs_eos=True)


def _plain_rendering(turns: Sequence[Message], tools: Sequence[Any]) -> str:
    lines = (
        [json.dumps(list(tools), ensure_ascii=False), *map(_plain_turn, turns)]
        if tools
        else map(_plain_turn, turns)
    )
    return "".join(f"{line}\n" for line in lines) or "\n"


def _plain_turn(turn: Message) -> str:
    """Return what a turn holds: its text, and whatever stands beside it as JSON below."""
    beside = {name: value for name, value in turn.items() if name not in {"role", "content"}}
    return "\n".join(
        [
            turn["content"],
            *([json.dumps(beside, ensure_ascii=False, sort_keys=True)] if beside else []),
        ]
    )


def _refused(tokenizer: Any, why: TemplateRefusal) -> Encoding:  # noqa: ANN401 - see encode_sample
    """Return the encoding of a sample that the template does not render: a token, no target."""
    first = np.array([_any_token(tokenizer)], dtype=np.int32)
    return Encoding(tokens=first, response_start=1, body_end=1, refusal=str(why))


def _any_token(tokenizer: Any) -> int:  # noqa: ANN401 - see encode_sample
    """Return a token that may stand before a text that has nothing before it."""
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
    return next(int(token) for token in known if token is not None)


def _begun(chat: ChatFormat, found: Tokenized) -> Tokenized:
    """Put the tokenizer's own BOS first where no template says so, and one token before a body."""
    tokenizer, first = chat.tokenizer, list[int]()
    if chat.plain is None:
        opening = list(tokenizer("")["input_ids"])[:1]
        first = opening if opening and opening[0] == tokenizer.bos_token_id else []
    if not first and (not found.tokens or found.spans[0].begin == 0):
        first = [_any_token(tokenizer)]
    if not first:
        return found
    spans = tuple(Span(*(place + 1 for place in span)) for span in found.spans)
    return Tokenized([*first, *found.tokens], spans)


def _cut(found: Tokenized, max_length: int) -> Encoding:
    """Return the encoding of tokens, cut to ``max_length``."""
    *earlier, (start, body_end, end) = found.spans
    body, closing = body_end - start, end - body_end
    prompt = start
    if end > max_length:
        least = min(start, max(1, max_length // 4))
        prompt = min(start, max(least, max_length - body - closing))
        if prompt + body + closing > max_length:
            body, closing = min(body, max_length - prompt), 0
    off = start - prompt
    tokens = np.array(found.tokens[off : off + prompt + body + closing], dtype=np.int32)
    kept = (Span(*(max(place - off, 1) for place in span)) for span in earlier)
    return Encoding(
        tokens=tokens,
        response_start=prompt,
        body_end=prompt + body,
        earlier=tuple(span for span in kept if span.end > span.begin),
    )
