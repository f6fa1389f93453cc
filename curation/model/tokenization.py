"""Encode samples as tokens: prompt, response body and end of turn, tokenised apart.

tokens = prompt ∥ body ∥ end, with the loss on body and end only. The prompt is the chat template's
text up to where the assistant speaks; the body is tokenised by itself, so it is the same under any
prompt; the end is what the template writes after a response, up to its first special token.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Int32
from jinja2 import TemplateError

from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ModelError

_MARK = "fedwinnow-response"
BLOCK = 1024
"""Samples whose texts are tokenised in one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """One sample as tokens: prompt, response body, end of turn."""

    tokens: Int32[np.ndarray, " tokens"]
    response_start: int
    """Place of the body's first token, at least 1, so that something predicts it."""
    body_end: int
    """Body: ``tokens[response_start:body_end]``; what follows is the end-of-turn token, absent
    where it was cut away."""

    @property
    def has_target(self) -> bool:
        """Return whether there is a body token to compute a loss on."""
        return self.body_end > self.response_start


def encode_sample(
    tokenizer: Any,  # noqa: ANN401 - transformers' tokenizers share no typed base
    sample: Sample,
    *,
    max_length: int,
    system_prompt: str = "",
    end: tuple[int, ...] | None = None,
) -> Encoding:
    """Encode one sample, cut to ``max_length``.

    A sample that is too long loses the front of its prompt first, down to a quarter of
    ``max_length``; then the end of its response, and with it the end-of-turn token. A response
    with any token keeps at least one.

    Args:
        tokenizer: Any tokenizer of transformers; without a chat template, a line break parts
            prompt and response.
        sample: The sample to encode.
        max_length: Longest result in tokens, at least 8.
        system_prompt: System message before everything; "" for none.
        end: End-of-turn tokens, where the caller knows them.

    Raises:
        ModelError: the chat template refuses the sample's turns.
    """
    end = end_tokens(tokenizer) if end is None else end
    prompt = prompt_tokens(tokenizer, sample, system_prompt)
    return _cut(prompt, _tokens(tokenizer, sample.response), end, max_length)


def encode_samples(
    tokenizer: Any,  # noqa: ANN401 - see encode_sample
    samples: Iterable[Sample],
    *,
    max_length: int,
    system_prompt: str = "",
    end: tuple[int, ...] | None = None,
) -> Iterator[Encoding]:
    """Encode samples as :func:`encode_sample` does, read and tokenised block by block.

    A fast tokenizer takes the texts of a block at once, on as many threads as there are processors.

    Raises:
        ModelError: the chat template refuses the turns of a sample.
    """
    end = end_tokens(tokenizer) if end is None else end
    start, rest = _start(tokenizer), iter(samples)
    while block := list(islice(rest, BLOCK)):
        texts = [_prompt_text(tokenizer, sample, system_prompt) for sample in block]
        prompts = _all_tokens(tokenizer, texts)
        bodies = _all_tokens(tokenizer, [sample.response for sample in block])
        for prompt, body in zip(prompts, bodies, strict=True):
            yield _cut(_begun(tokenizer, prompt, start), body, end, max_length)


def _cut(prompt: list[int], body: list[int], end: tuple[int, ...], max_length: int) -> Encoding:
    """Join prompt, body and end of turn, cut to ``max_length`` tokens."""
    closing = list(end)
    if len(prompt) + len(body) + len(closing) > max_length:
        least = min(len(prompt), max(1, max_length // 4))
        room = max(least, max_length - len(body) - len(closing))
        prompt = prompt[-min(room, len(prompt)) :]
        if len(prompt) + len(body) + len(closing) > max_length:
            body, closing = body[: max_length - len(prompt)], []
    tokens = np.array([*prompt, *body, *closing], dtype=np.int32)
    return Encoding(tokens=tokens, response_start=len(prompt), body_end=len(prompt) + len(body))


def end_tokens(tokenizer: Any) -> tuple[int, ...]:  # noqa: ANN401 - see encode_sample
    """Return the tokens after a response: the template's up to the first special one, or EOS."""
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        tokens = _tokens(tokenizer, _render(tokenizer, turns).rsplit(_MARK, 1)[-1])
        special = set(tokenizer.all_special_ids)
        first = next((i for i, token in enumerate(tokens) if token in special), None)
        if first is not None:
            return tuple(tokens[: first + 1])
    return () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)


def prompt_tokens(tokenizer: Any, sample: Sample, system_prompt: str) -> list[int]:  # noqa: ANN401 - see encode_sample
    """Return the tokens of everything before the response, uncut and at least one.

    Raises:
        ModelError: the chat template refuses the turns.
    """
    tokens = _tokens(tokenizer, _prompt_text(tokenizer, sample, system_prompt))
    return _begun(tokenizer, tokens, _start(tokenizer))


def _prompt_text(tokenizer: Any, sample: Sample, system_prompt: str) -> str:  # noqa: ANN401 - see encode_sample
    """Return everything before the response, as text."""
    turns = [{"role": "system", "content": system_prompt}] if system_prompt else []
    turns += [{"role": role, "content": content} for role, content, _ in sample.conversation[:-1]]
    if tokenizer.chat_template:
        return _render(tokenizer, turns, add_generation_prompt=True)
    return "\n".join(turn["content"] for turn in turns) + "\n"


def _start(tokenizer: Any) -> list[int]:  # noqa: ANN401 - see encode_sample
    """Return what starts a text where no template says so: the tokenizer's own BOS, or nothing."""
    if tokenizer.chat_template:
        return []
    first = list(tokenizer("")["input_ids"])[:1]
    return first if first and first[0] == tokenizer.bos_token_id else []


def _begun(tokenizer: Any, tokens: list[int], start: list[int]) -> list[int]:  # noqa: ANN401 - see encode_sample
    """Put ``start`` before a prompt's tokens; return at least one token."""
    tokens = [*start, *tokens]
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
    return tokens or [next(int(token) for token in known if token is not None)]


def _render(
    tokenizer: Any,  # noqa: ANN401 - see encode_sample
    turns: Sequence[dict[str, str]],
    *,
    add_generation_prompt: bool = False,
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        message = (
            f"the model's chat template refuses the turns ({roles}): {error}; set "
            "model.system_prompt = '' if it knows no system turn, and let user and assistant "
            "take turns in the data"
        )
        raise ModelError(message) from error
    return str(text)


def _tokens(tokenizer: Any, text: str) -> list[int]:  # noqa: ANN401 - see encode_sample
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _all_tokens(tokenizer: Any, texts: list[str]) -> list[list[int]]:  # noqa: ANN401 - see encode_sample
    found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
    return [list(tokens) for tokens in found["input_ids"]]
