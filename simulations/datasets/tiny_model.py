"""Make a tiny model for tests and trials in code: a two-layer Llama and a character tokenizer.

``write_tiny_model`` writes an ordinary model folder, so that everything loads it by the same path
as a real one, with no network.
"""

import string
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PADDING, END, UNKNOWN = "<pad>", "</s>", "<unk>"
ROLES = ("<s>", "<u>", "<a>")
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'][0] }}>{{ message['content'] }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
"""Chat template: a role tag, the text, the end of turn."""


def write_tiny_model(  # noqa: PLR0913 - a model's sizes
    folder: Path,
    *,
    seed: int = 0,
    hidden: int = 32,
    layers: int = 2,
    intermediate: int = 0,
    heads: int = 4,
    kv_heads: int = 0,
    vocabulary: int = 0,
    tied: bool = False,
    dtype: str = "float32",
) -> Path:
    """Write a random Llama and its tokenizer into ``folder`` and return it.

    Args:
        folder: Target folder; made if missing.
        seed: Seed of the weights.
        hidden: Width of the residual stream.
        layers: Decoder layers.
        intermediate: Width of the MLP; 0 takes twice ``hidden``.
        heads: Attention heads.
        kv_heads: Heads of keys and values, a divisor of ``heads``; 0 takes half as many.
        vocabulary: Least number of rows of the embedding; the tokenizer's own if that is larger.
        tied: Whether embedding and head are one.
        dtype: Number format of the weights.
    """
    tokenizer = _letters()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tiny_llama(
            tokenizer,
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            intermediate=intermediate or 2 * hidden,
            vocabulary=vocabulary,
            tied=tied,
        )
    torch.nn.Module.to(model, getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_llama(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden: int,
    layers: int,
    heads: int,
    intermediate: int,
    kv_heads: int = 0,
    vocabulary: int = 0,
    tied: bool = False,
) -> LlamaForCausalLM:
    """Return a random Llama from torch's own random state; ``tied``: embedding and head are one."""
    config = LlamaConfig(
        vocab_size=max(len(tokenizer), vocabulary),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads // 2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def byte_pair_tokenizer(texts: Sequence[str], *, size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer of ``size`` tokens on the texts; each digit is its own token."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PADDING, END, UNKNOWN, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer)


def _letters() -> PreTrainedTokenizerFast:
    special = [PADDING, END, UNKNOWN, *ROLES]
    letters = [*string.ascii_letters, *string.digits, *string.punctuation, " ", "\n"]
    vocabulary = {token: index for index, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrapped(tokenizer)


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PADDING,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[*ROLES],
        chat_template=TEMPLATE,
    )
