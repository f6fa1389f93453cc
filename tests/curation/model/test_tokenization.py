"""Laws of turning samples into tokens: spans, truncation, ends, templates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fedwinnow.curation.datatypes import Sample, Turn
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.model.tokenization import encode_sample, end_tokens, prompt_tokens


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder):
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.fixture
def bare(tiny_model_folder):
    """A tokenizer of its own, to be changed; no chat template."""
    found = AutoTokenizer.from_pretrained(tiny_model_folder)
    found.chat_template = None
    return found


def one(prompt, response, **more):
    return Sample(id="s", prompt=prompt, response=response, **more)


def text_of(tokenizer, tokens):
    return tokenizer.decode([int(token) for token in tokens])


def test_encoding_is_the_template_text(tokenizer):
    """Prompt, body and end together are the chat template's own rendering."""
    sample = one("why?", "so.", history=(Turn("user", "a"), Turn("assistant", "b")))
    encoding = encode_sample(tokenizer, sample, max_length=96, system_prompt="be brief")
    turns = [
        ("system", "be brief"),
        *(turn[:2] for turn in sample.history),
        ("user", "why?"),
        ("assistant", "so."),
    ]
    turns = [{"role": role, "content": content} for role, content in turns]
    assert text_of(tokenizer, encoding.tokens) == tokenizer.apply_chat_template(
        turns, tokenize=False
    )
    body = encoding.tokens[encoding.response_start : encoding.body_end]
    assert text_of(tokenizer, body) == "so."
    assert encoding.tokens[encoding.body_end :].tolist() == [tokenizer.eos_token_id]


def test_encoding_body_is_the_same_under_any_prompt(tokenizer):
    """The body's tokens do not depend on prompt, history or system prompt."""
    bodies = set()
    for sample, system in ((one("", "yes"), ""), (one("p q", "yes"), "s"), (one("\n", "yes"), "")):
        found = encode_sample(tokenizer, sample, max_length=96, system_prompt=system)
        bodies.add(tuple(found.tokens[found.response_start : found.body_end].tolist()))
    assert len(bodies) == 1


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(8, 48))
def test_truncation_keeps_a_target_and_its_order(tokenizer, asked, answered, max_length):
    """Never too long; front of the prompt first, then the body's end and with it the end token."""
    full = encode_sample(tokenizer, one("p" * asked, "r" * answered), max_length=1000)
    cut = encode_sample(tokenizer, one("p" * asked, "r" * answered), max_length=max_length)
    before, body = full.response_start, full.body_end - full.response_start
    kept, kept_body = cut.response_start, cut.body_end - cut.response_start
    assert len(cut.tokens) <= max_length
    assert cut.has_target == (answered > 0)
    assert kept >= 1
    assert np.array_equal(cut.tokens[:kept], full.tokens[before - kept : before])
    start = full.response_start
    assert np.array_equal(cut.tokens[kept : cut.body_end], full.tokens[start : start + kept_body])
    if kept < before:
        assert len(cut.tokens) == max_length
    if kept_body < body:
        assert cut.body_end == len(cut.tokens)
        assert kept == min(before, max_length // 4)
    if len(cut.tokens) > cut.body_end:
        assert cut.tokens[cut.body_end :].tolist() == full.tokens[full.body_end :].tolist()


def test_encoding_of_an_empty_response_has_no_target(tokenizer):
    """Nothing to compute a loss on, though the end of turn is there."""
    encoding = encode_sample(tokenizer, one("p", ""), max_length=32)
    assert not encoding.has_target
    assert encoding.response_start == encoding.body_end < len(encoding.tokens)


def test_end_tokens_stop_at_the_first_special_token(bare):
    """What a template writes after the end of turn is no target; without a template, the EOS."""
    assert end_tokens(bare) == (bare.eos_token_id,)
    bare.chat_template = "{% for m in messages %}{{ m['content'] }}</s>\n{% endfor %}"
    assert end_tokens(bare) == (bare.eos_token_id,)
    bare.chat_template = "{% for m in messages %}{{ m['content'] }}.!</s>\n{% endfor %}"
    assert text_of(bare, end_tokens(bare)) == ".!</s>"
    bare.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    assert end_tokens(bare) == (bare.eos_token_id,)


def test_prompt_without_a_template_ends_with_a_line_break(bare):
    """Turns stand one below the other."""
    sample = one("why?", "so", history=(Turn("user", "a"),))
    assert text_of(bare, prompt_tokens(bare, sample, "s")) == "s\na\nwhy?\n"


class BareTokenizer:
    """Tokenises letters, and an empty line to nothing."""

    chat_template = None
    all_special_ids = (1, 2)
    bos_token_id, eos_token_id = 1, 2

    def __init__(self, *, adds_bos) -> None:
        self.adds_bos = adds_bos

    def __call__(self, text, *, add_special_tokens=True) -> dict:
        """Letters as their code points."""
        tokens = [ord(letter) for letter in text.strip()]
        return {"input_ids": [1] * (self.adds_bos and add_special_tokens) + tokens}


def test_prompt_without_a_template_begins_with_the_tokenizers_own_first_token():
    """A base model that was trained with a beginning-of-sequence token gets it, once."""
    assert prompt_tokens(BareTokenizer(adds_bos=True), one("a", ""), "") == [1, ord("a")]
    assert prompt_tokens(BareTokenizer(adds_bos=False), one("a", ""), "") == [ord("a")]


def test_prompt_is_never_empty():
    """Something predicts the body's first token, whatever the tokenizer makes of the prompt."""
    encoding = encode_sample(BareTokenizer(adds_bos=False), one("", "ab"), max_length=8)
    assert encoding.response_start == 1
    assert encoding.tokens.tolist() == [1, ord("a"), ord("b"), 2]


def test_template_that_refuses_the_turns_is_named(bare):
    """A template without a system turn gives an error that names the setting."""
    bare.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{{ m['content'] }}</s>"
        "{% endfor %}"
    )
    assert encode_sample(bare, one("p", "r"), max_length=32).has_target
    with pytest.raises(ModelError, match=r"system, user.*System role.*model\.system_prompt"):
        encode_sample(bare, one("p", "r"), max_length=32, system_prompt="s")
