"""Laws of what is learnt under the chat templates of well-known families."""

import json

import pytest
import torch
from chat_templates import FAMILIES, family_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from fedwinnow.curation.config.scoring import AdapterSection
from fedwinnow.curation.datatypes import Sample, Turn
from fedwinnow.curation.model.pretrained import adopt_model, generate
from fedwinnow.curation.model.token_losses import collate
from fedwinnow.curation.tokens.chat_templates import ChatFormat, messages_of, tools_of
from fedwinnow.curation.tokens.tokenization import encode_sample, prompt_tokens

TOOLS = json.dumps([{"type": "function", "function": {"name": "find", "parameters": {}}}])
CALL = json.dumps(
    {"tool_calls": [{"type": "function", "function": {"name": "find", "arguments": '{"at": "é"}'}}]}
)
WORDS = st.lists(
    st.sampled_from(["yes", " no", "2", "+", "\n", "  ", "\t", "🙂", "é", "日本", "<|"]),
    max_size=5,
).map("".join)


def texts(controls):
    """Contents, some of which spell a control token."""
    return st.one_of(WORDS, st.tuples(WORDS, st.sampled_from(controls), WORDS).map("".join))


@st.composite
def conversations(draw, family):
    """What a sample holds: several turns, tools, an empty system turn, control tokens."""
    content = texts([family.eos, family.end.strip(), *family.special])
    tools = family.tools and draw(st.booleans())

    def exchange():
        called = [Turn("assistant", "", CALL), Turn("tool", draw(content))]
        return [
            *(called if tools and draw(st.booleans()) else []),
            Turn("assistant", draw(content)),
        ]

    history = [Turn("system", draw(content))] if family.system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        history += [Turn("user", draw(content)), *exchange()]
    *followup, answer = exchange()
    return {
        "history": tuple(history),
        "prompt": draw(content),
        "followup": tuple(followup),
        "response": answer.content,
        "response_details": CALL if tools and draw(st.booleans()) else "",
        "tools": TOOLS if tools else "",
        "train_on": "all",
    }


def decoded(tokenizer, tokens):
    """The text of tokens, control tokens included."""
    return tokenizer.decode([int(one) for one in tokens], clean_up_tokenization_spaces=False)


def rendered(tokenizer, family, sample, *, last=True, tokenize=False):
    """The template's own rendering; a tokenizer of several templates has each find its own."""
    turns = messages_of(sample, "")
    if family.parts:
        turns = [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in turns]
    return tokenizer.apply_chat_template(
        turns if last else turns[:-1],
        tools=tools_of(sample) or None,
        add_generation_prompt=not last,
        tokenize=tokenize,
        **({"return_dict": False} if tokenize else {}),
    )


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=15)
@given(data=st.data())
def test_learnt_tokens_are_those_of_the_templates_own_rendering(name, data):
    """Oracle: transformers' rendering of the same conversation, token by token.

    The loss covers each answer and its end of turn; control tokens that a text spells stay text.
    """
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    sample = Sample(id="s", **data.draw(conversations(family)))
    chat = ChatFormat.of(tokenizer)
    found = encode_sample(tokenizer, sample, max_length=10**6, chat=chat)
    assert not found.refusal
    spelt = chat.control.search("\0".join(t for turn in sample.conversation for t in turn))
    whole = rendered(tokenizer, family, sample)
    mine = decoded(tokenizer, found.tokens)
    assert whole.startswith(mine)
    assert not whole[len(mine) :].replace(family.eos, "").strip()
    if not spelt:
        theirs = rendered(tokenizer, family, sample, tokenize=True)
        assert found.tokens.tolist() == theirs[: len(found.tokens)]
    else:
        tame = [chat.control.sub("x", turn.content) for turn in sample.conversation]
        assert written(chat, found.tokens) == written(
            chat, encode_sample(tokenizer, with_contents(sample, tame), max_length=10**6).tokens
        )
    prompt = rendered(tokenizer, family, sample, last=False)
    before = decoded(tokenizer, found.tokens[: found.response_start])
    assert family.own_prompt or prompt.startswith(before) or before.startswith(prompt)
    asked = decoded(tokenizer, prompt_tokens(chat, sample, ""))
    assert asked.startswith(prompt)
    if not family.own_prompt:  # what is generated follows what the answer was learnt after
        assert whole.startswith(asked)
        assert asked.startswith(before)
        assert not asked[len(before) :].strip()  # no more than a straddling token
    check_spans(name, tokenizer, sample, found)


def written(chat, tokens):
    """Number of control tokens."""
    return sum(int(token) in chat.control_ids for token in tokens)


def with_contents(sample, contents):
    """The sample with other contents."""
    before = len(sample.history)
    turns = [
        turn._replace(content=text)
        for turn, text in zip(sample.conversation, contents, strict=True)
    ]
    return Sample(
        id="s",
        history=tuple(turns[:before]),
        prompt=turns[before].content,
        followup=tuple(turns[before + 1 : -1]),
        response=turns[-1].content,
        response_details=sample.response_details,
        tools=sample.tools,
    )


def check_spans(name, tokenizer, sample, found):
    """Each answer's body holds its content and calls, and its end is the family's."""
    *before, response = [turn for turn in sample.conversation if turn.role == "assistant"]
    learnt = [turn for turn in before if turn.content.strip() or turn.details]  # not a bare end
    answers = [*learnt, response]
    spans = [*found.earlier, (found.response_start, found.body_end, len(found.tokens))]
    assert len(spans) == len(answers)
    for answer, (begin, body_end, end) in zip(answers, spans, strict=True):
        body, closing = (
            decoded(tokenizer, found.tokens[a:b]) for a, b in ((begin, body_end), (body_end, end))
        )
        ends = FAMILIES[name].end
        ends = "<|eom_id|>" if name == "llama-3.1 tools" and answer.details else ends
        assert closing.strip() == ends.strip()
        if not answer.details:
            assert body.strip().endswith(answer.content.strip())
            lead = body.strip().removesuffix(answer.content.strip()).strip()
            assert lead in ("", "<think>\n\n</think>"), body
        else:
            assert name == "named" or "find" in body
    mask = collate([found]).targets[0].nonzero().flatten().tolist() if found.has_target else None
    places = {p for begin, _, end in spans for p in range(begin, end)}
    assert mask is None or set(mask) == places


class Slow:
    """A family's tokenizer without offsets."""

    is_fast = False

    def __init__(self, fast) -> None:
        self.fast = fast

    def __getattr__(self, name) -> object:
        return getattr(self.fast, name)

    def __call__(self, text, **options) -> dict:
        """The tokens."""
        return self.fast(text, **options)

    def __len__(self) -> int:
        return len(self.fast)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tokenizer_without_offsets_gives_the_same_texts(name):
    """Law: prompt, bodies and ends are texts as with offsets, control tokens in texts included."""
    family, fast = FAMILIES[name], family_tokenizer(name)
    turns = (Turn("user", f"a {family.eos} b"), Turn("assistant", "yes"))
    sample = Sample(id="s", history=turns, prompt="é?", response="🙂 no", train_on="all")
    one, other = (encode_sample(t, sample, max_length=999) for t in (fast, Slow(fast)))
    assert len(one.earlier) == len(other.earlier) == 1
    for spans in zip([*one.targets, *one.bodies], [*other.targets, *other.bodies], strict=True):
        texts = [
            decoded(fast, e.tokens[slice(*s)]) for e, s in zip((one, other), spans, strict=True)
        ]
        assert texts[0] == texts[1]
    chat = ChatFormat.of(fast)
    assert decoded(fast, one.tokens) == decoded(fast, other.tokens)
    assert written(chat, one.tokens) == written(chat, other.tokens)


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_stops_at_the_templates_end_of_turn(name):
    """A model that says "yes", the end that it was taught, and "no" answers "yes"."""
    tokenizer = family_tokenizer(name)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, eos_token_id=None, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    section = AdapterSection(rank=1, targets=("q_proj",))
    loaded = adopt_model(LlamaForCausalLM(config), tokenizer, section, seed=0)
    sample = Sample(id="s", prompt="?", response="yes")
    encoding = encode_sample(tokenizer, sample, max_length=10**6)
    taught = encoding.tokens[encoding.response_start :].tolist()
    said = iter([*taught, *tokenizer("no")["input_ids"] * 9])

    def force(_module, _inputs, logits):
        logits[...] = 0.0
        logits[:, -1, next(said)] = 1.0
        return logits

    loaded.model.get_base_model().lm_head.register_forward_hook(force)
    (answer,) = generate(loaded, [sample], max_new_tokens=len(taught) + 4)
    assert answer.removeprefix("<think>\n\n</think>").strip() == "yes"
