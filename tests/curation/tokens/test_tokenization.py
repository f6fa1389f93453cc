"""Laws of turning samples into tokens: spans, truncation, ends, templates."""

from dataclasses import replace

import numpy as np
import pytest
from chat_templates import family_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fedwinnow.curation.datatypes import Sample, Turn
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.model.load_checks import check_template
from fedwinnow.curation.model.token_losses import collate
from fedwinnow.curation.tokens.chat_templates import ChatFormat
from fedwinnow.curation.tokens.tokenization import (
    encode_sample,
    encode_samples,
    end_tokens,
    prompt_tokens,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder):
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.fixture(scope="module")
def chat(tokenizer):
    return ChatFormat.of(tokenizer)


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
    """Law: where no token straddles its border, a body's tokens do not depend on what is before.

    Under other prompts they are spliced in any case, not made again.
    """
    bodies = set()
    for sample, system in ((one("", "yes"), ""), (one("p q", "yes"), "s"), (one("\n", "yes"), "")):
        found = encode_sample(tokenizer, sample, max_length=96, system_prompt=system)
        bodies.add(tuple(found.tokens[found.response_start : found.body_end].tolist()))
    assert len(bodies) == 1


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(8, 48))
def test_truncation_keeps_a_target_and_its_order(tokenizer, chat, asked, answered, max_length):
    """Never too long; front of the prompt first, then the body's end and with it the end token."""
    sample = one("p" * asked, "r" * answered)
    full, cut = (
        encode_sample(tokenizer, sample, max_length=length, chat=chat)
        for length in (1000, max_length)
    )
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


@pytest.mark.parametrize(
    ("after", "end"),
    [("</s>\\n", "</s>"), (".!</s>\\n", ".!</s>"), ("\\n", "</s>"), (None, "</s>")],
)
def test_end_of_turn_stops_at_the_templates_first_added_token(bare, after, end):
    """Law: the first added token after an answer ends its turn; where there is none, the EOS."""
    if after is not None:
        bare.chat_template = (
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] + '"
            + after
            + "' }}{% endfor %}"
        )
    assert text_of(bare, end_tokens(ChatFormat.of(bare))) == end
    encoding = encode_sample(bare, one("p", "r"), max_length=64)
    assert text_of(bare, encoding.tokens[encoding.response_start :]) == f"r{end}"


@pytest.mark.parametrize("known", [True, False])
def test_a_difference_from_the_template_is_told_at_load(bare, caplog, known):
    """Law: an end that is no token of the tokenizer is named in a warning that shows both."""
    end = "</s>" if known else "[end]"
    bare.chat_template = "{% for m in messages %}{{ m['content'] }}" + end + "\n{% endfor %}"
    check_template(ChatFormat.of(bare))
    assert ("[end]" in caplog.text) == (not known)
    assert known or "'It is 5.</s>' is learnt" in caplog.text


def test_prompt_without_a_template_ends_with_a_line_break(bare):
    """Turns stand one below the other."""
    sample = one("why?", "so", history=(Turn("user", "a"),))
    assert text_of(bare, prompt_tokens(ChatFormat.of(bare), sample, "s")) == "s\na\nwhy?\n"


def test_turns_without_a_template_lose_nothing(bare):
    """Law: tools stand in the first line, and what a turn holds beside its text below it."""
    sample = one("p", "r", tools='["t"]', followup=(Turn("assistant", "a", '{"k": 1}'),))
    text = text_of(bare, encode_sample(bare, sample, max_length=99).tokens)
    assert text == '["t"]\np\na\n{"k": 1}\nr</s>'


def test_a_token_across_a_border_counts_as_body():
    """Law: the line break that ends the prompt and that which begins the answer are one token."""
    family = family_tokenizer("chatml")
    (both,) = family("\n\n", add_special_tokens=False)["input_ids"]
    encoding = encode_sample(family, one("?", "\n\nyes"), max_length=99)
    assert encoding.tokens[encoding.response_start] == both
    assert text_of(family, encoding.tokens[: encoding.response_start]).endswith("assistant")
    base = family_tokenizer("plain end")
    encoding = encode_sample(base, one("?", "yes\n"), max_length=99)
    assert text_of(base, encoding.tokens[encoding.body_end - 1 :]) == "\n\n<|eos|>"


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
    for adds_bos, first in ((True, [1]), (False, [])):
        chat = ChatFormat.of(BareTokenizer(adds_bos=adds_bos))
        assert prompt_tokens(chat, one("a", ""), "") == [*first, ord("a")]


def test_prompt_is_never_empty():
    """Something predicts the body's first token, whatever the tokenizer makes of the prompt."""
    encoding = encode_sample(BareTokenizer(adds_bos=False), one("", "ab"), max_length=8)
    assert encoding.response_start == 1
    assert encoding.tokens.tolist() == [1, ord("a"), ord("b"), 2]


def test_template_that_refuses_a_system_turn_is_named(bare):
    """Law: a refused system prompt is an error; a row's own system turn costs that row alone."""
    bare.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{{ m['content'] }}</s>"
        "{% endfor %}"
    )
    assert encode_sample(bare, one("p", "r"), max_length=32).has_target
    with pytest.raises(ModelError, match=r"model\.system_prompt.*system, user.*System role"):
        encode_sample(bare, one("p", "r"), max_length=32, system_prompt="s")
    row = one("p", "r", history=(Turn("system", "s"),))
    refused, kept = encode_samples(bare, [row, one("p", "r")], max_length=32)
    assert kept.has_target
    assert not kept.refusal
    assert not refused.has_target
    assert "system, user, assistant" in refused.refusal


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "without the question"),
        ({"tool_use": "{{ 1 }}", "rag": "{{ 2 }}"}, r"2 chat templates \(rag, tool_use\)"),
    ],
)
def test_template_that_writes_no_exchange_is_refused(bare, template, told):
    """Edge: whatever a template raises, or leaves out, is an error in words that names it."""
    bare.chat_template = template
    with pytest.raises(ModelError, match=rf"model\.name.*{told}.*chat_template"):
        encode_sample(bare, one("p", "r"), max_length=32)


def test_named_templates_serve_as_transformers_chooses_them(bare):
    """Law: the only template, whatever its name; else "default", and "tool_use" with tools."""
    chatty = "{% for m in messages %}<u>{{ m.content }}</s>{% endfor %}"
    bare.chat_template = {"odd": chatty}
    assert text_of(bare, encode_sample(bare, one("p", "r"), max_length=32).tokens) == (
        "<u>p</s><u>r</s>"
    )
    bare.chat_template = {"default": chatty, "tool_use": chatty.replace("<u>", "<a>")}
    for tools, tag in (("", "<u>"), ('[{"name": "t"}]', "<a>")):
        encoding = encode_sample(bare, one("p", "r", tools=tools), max_length=32)
        assert text_of(bare, encoding.tokens) == f"{tag}p</s>{tag}r</s>"


def test_every_answer_is_learnt_where_asked(tokenizer):
    """Law: train_on "all" adds the earlier answers to the targets and changes nothing else."""
    sample = one("why?", "so.", history=(Turn("user", "ab"), Turn("assistant", "cdef")))
    last = encode_sample(tokenizer, sample, max_length=96)
    both = encode_sample(tokenizer, replace(sample, train_on="all"), max_length=96)
    assert both.tokens.tolist() == last.tokens.tolist()
    (earlier,) = both.earlier
    assert text_of(tokenizer, both.tokens[earlier.begin : earlier.end]) == "cdef</s>"
    assert both.bodies == ((earlier.begin, earlier.end - 1), *last.bodies)
    assert collate([both]).targets.sum() == collate([last]).targets.sum() + 5
    for length in range(8, len(last.tokens)):
        cut = encode_sample(tokenizer, replace(sample, train_on="all"), max_length=length)
        off = len(both.tokens) - len(cut.tokens)
        places = range(max(earlier.begin - off, 1), max(earlier.end - off, 1))
        learnt = collate([cut]).targets[0, : cut.response_start].nonzero().flatten().tolist()
        assert learnt == list(places)


@pytest.mark.parametrize(
    ("name", "learnt"),
    [("qwen-3", "<think>\nhm\n</think>\n\nyes<|im_end|>"), ("r1", "\n\nyes<|eos|>")],
)
def test_thoughts_are_learnt_as_the_template_writes_them(name, learnt):
    """Law: the template decides whether a thought stays; the prompt is what comes before it."""
    family = family_tokenizer(name)
    thought = "<think>\nhm\n</think>\n\nyes"
    sample = one("?", thought, history=(Turn("user", "a"), Turn("assistant", thought)))
    encoding = encode_sample(family, replace(sample, train_on="all"), max_length=200)
    assert text_of(family, encoding.tokens[encoding.response_start :]) == learnt
    (earlier,) = encoding.earlier
    answer = text_of(family, encoding.tokens[earlier.begin : earlier.end])
    assert answer == learnt.removeprefix("<think>\nhm\n</think>\n\n")


CALL = '{"tool_calls":[{"type":"function","function":{"name":"find","arguments":{}}}]}'
TOOL = '[{"type":"function","function":{"name":"find","parameters":{}}}]'


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("zephyr", ["reasoning", "tool_calls", "tools"]),
        ("llama-3", ["reasoning", "tool_calls", "tools"]),
        ("qwen-2.5", ["reasoning"]),
        ("named", ["reasoning"]),
    ],
)
def test_parts_that_a_template_leaves_out_are_told_once(name, told, caplog):
    """Law: a template that ignores tools, calls or thoughts is named, once for each of them."""
    thought = Turn("assistant", "b", '{"reasoning":"hm"}')
    called = Turn("assistant", "", CALL)
    history = (Turn("user", "a"), thought)
    sample = one("?", "c", history=history, followup=(called, Turn("tool", "7")), tools=TOOL)
    tokenizer = family_tokenizer(name)
    encodings = list(encode_samples(tokenizer, [sample, sample], max_length=500))
    warned = [record.getMessage() for record in caplog.records]
    caplog.clear()
    encode_sample(tokenizer, one("?", "c", tools="[]"), max_length=500)
    assert not caplog.records  # no tools are left out of a sample without any
    assert sorted(text.split("leaves out ")[1].split(",")[0] for text in warned) == told
    assert all(encoding.has_target for encoding in encodings)
    alone = one("?", "", response_details=CALL, tools=TOOL)
    encoding = encode_sample(tokenizer, alone, max_length=500)
    assert ("the whole answer" in encoding.refusal) == ("tool_calls" in told)
    assert encoding.has_target == ("tool_calls" not in told)


def test_an_earlier_answer_that_is_empty_is_not_learnt():
    """Edge: where a template leaves the calls of an earlier turn out, no bare end is learnt."""
    for name, learnt in (("zephyr", ["b", "c"]), ("qwen-2.5", ["b", "find", "c"])):
        tokenizer = family_tokenizer(name)
        history = (Turn("user", "a"), Turn("assistant", "b"))
        followup = (Turn("assistant", "", CALL), Turn("tool", "7"))
        sample = one("?", "c", history=history, followup=followup, train_on="all")
        encoding = encode_sample(tokenizer, sample, max_length=500)
        bodies = [text_of(tokenizer, encoding.tokens[begin:end]) for begin, end in encoding.bodies]
        assert len(bodies) == len(learnt)
        assert all(part in body for part, body in zip(learnt, bodies, strict=True))
