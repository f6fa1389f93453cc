"""Compare a loaded model with its tokenizer, its settings and its chat template.

A tokenizer with more tokens than the embedding has rows, or samples longer than a table of
learned positions, would end a pass in an index error: both are refused before it.
"""

import logging
from typing import Any

import torch

from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.tokens.chat_templates import ChatFormat, messages_of
from fedwinnow.curation.tokens.tokenization import encode_sample

logger = logging.getLogger(__name__)

_TABLES = ("wpe", "embed_positions", "position_embeddings", "position_embedding", "wpe_embedding")
"""Names of modules and buffers that hold one row a position."""


def check_embeddings(base: Any, tokenizer: Any, what: str) -> None:  # noqa: ANN401 - transformers' classes share no typed base
    """Refuse a tokenizer that has more tokens than the model embeds.

    Args:
        base: A causal language model.
        tokenizer: Its tokenizer.
        what: The setting and the model's name, for the message.

    Raises:
        ModelError: it has.
    """
    rows = base.get_input_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        message = (
            f"{what} embeds {rows} tokens, the tokenizer has {len(tokenizer)}; give the "
            "tokenizer of this model, or save the model after "
            f"resize_token_embeddings({len(tokenizer)})"
        )
        raise ModelError(message)


def positions(model: torch.nn.Module) -> int:
    """Return how many positions a model has a table for; 0 where it has no such table.

    Rotary and ALiBi models compute positions and have none.
    """
    tables = [
        part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Embedding) and name.rpartition(".")[2] in _TABLES
    ]
    tables += [
        int(table.shape[0])
        for name, table in model.named_buffers()
        if name.rpartition(".")[2] in _TABLES
    ]
    if not tables:
        return 0
    config = getattr(model, "config", None)
    said = getattr(config, "max_position_embeddings", None) or min(tables)
    return min(*tables, int(said))  # OPT's table has two rows more, RoBERTa counts from its padding


def check_positions(most: int, max_length: int, what: str = "model.name") -> None:
    """Refuse samples that are longer than a model's table of positions.

    Args:
        most: The model's :func:`positions`.
        max_length: Longest sample in tokens.
        what: The setting that names the model, for the message.

    Raises:
        ModelError: naming ``model.max_length``.
    """
    if most and max_length > most:
        message = (
            f"model.max_length = {max_length}: the model of {what} has {most} learned positions; "
            f"set model.max_length to at most {most}"
        )
        raise ModelError(message)


def check_template(chat: ChatFormat) -> None:
    """Compare what we train on with what the chat template renders, for one plain exchange.

    A warning shows both where the template ends an answer with no token of the tokenizer, so that
    its EOS is learnt in place of the template's text.

    Raises:
        ModelError: the tokens differ otherwise; shows both.
    """
    if chat.plain is None:
        return
    sample = Sample(id="", prompt="What is 2 plus 3?", response="It is 5.")
    found = encode_sample(chat.tokenizer, sample, max_length=10**6, chat=chat)
    text = chat.plain.render(messages_of(sample, ""))
    expected = list(chat.tokenizer(text, add_special_tokens=False)["input_ids"])
    ours, theirs = found.tokens.tolist(), expected[: len(found.tokens)]
    if chat.plain.end and ours == theirs:
        return
    learnt = chat.tokenizer.decode(ours[found.response_start :])
    shown = f"{learnt!r} is learnt, the chat template renders {text!r}"
    if ours[: found.body_end] != theirs[: found.body_end]:
        message = f"model.name: {shown}; repair tokenizer.chat_template"
        raise ModelError(message)
    if not chat.plain.end and chat.plain.tail.strip():
        logger.warning(
            "model.name: the chat template ends an answer with the text %r, which is no token of "
            "the tokenizer, so its EOS ends it: %s", chat.plain.tail, shown,
        )  # fmt: skip
