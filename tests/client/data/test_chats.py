"""Chats of every common form: what the model reads of them, and what is told."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedwinnow.client.data.conversations import read_conversation
from fedwinnow.client.data.samples import open_samples
from fedwinnow.client.data.turns import read_tools
from fedwinnow.curation.config.scoring import ColumnsSection
from fedwinnow.curation.datatypes import Turn
from fedwinnow.curation.errors import DataError

CHATS = ColumnsSection(messages="messages")
ANSWER = {"role": "assistant", "content": "yes"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
ASK = {"role": "user", "content": "How warm?"}
TOOLED = [
    {"role": "system", "content": [{"type": "text", "text": t} for t in ("be ", "brief")]},
    ASK,
    {"role": "assistant", "content": None, "reasoning_content": "look", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "name": "weather", "content": "3 C"},
    {"role": "assistant", "content": "3 degrees."},
]  # fmt: skip
SHARED = [
    {"from": "system", "value": "be brief"},
    {"from": "human", "value": "How warm?"},
    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
    {"from": "observation", "value": "3 C"},
    {"from": "gpt", "value": "3 degrees."},
]
LEGACY = [
    ASK,
    {"role": "assistant", "content": None, "function_call": CALL["function"]},
    {"role": "function", "name": "weather", "content": "3 C"},
    {"role": "assistant", "content": "3 degrees."},
]


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_tool_turns_keep_their_details():
    """Law: calls, their ids, names and reasoning stay in the turns, whatever spells them."""
    call = json.dumps([CALL], separators=(",", ":"))
    chat = read_conversation(TOOLED, "x")
    assert chat.history == (Turn("system", "be brief"),)
    assert chat.followup == (
        Turn("assistant", "", f'{{"reasoning_content":"look","tool_calls":{call}}}'),
        Turn("tool", "3 C", '{"tool_call_id":"1","name":"weather"}'),
    )
    assert (chat.prompt, chat.response, chat.unread) == ("How warm?", "3 degrees.", ())
    shared, legacy = read_conversation(SHARED, "x"), read_conversation(LEGACY, "x")
    assert shared.history == chat.history
    called = Turn("assistant", "", f'{{"tool_calls":{call}}}')
    assert shared.followup == (called, Turn("tool", "3 C"))
    assert legacy.followup[0] == shared.followup[0]
    assert legacy.followup[1] == Turn("tool", "3 C", '{"name":"weather"}')
    assert read_conversation(json.dumps(TOOLED), "x") == chat


@pytest.mark.parametrize("names", [("User", "Model", "tool_call", "tool_response"),
                                   ("prompter", "BOT", "function_call", "observation"),
                                   ("human", "bing", "Tool_Call", "Tool")])  # fmt: skip
def test_other_names_of_roles_are_read(names):
    """Equivalence: whatever a data set calls its roles, in any case, the chat is the same."""
    asks, answers, calls, results = names
    named = [
        {"from": asks, "value": "How warm?"},
        {"from": calls, "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
        {"from": results, "value": "3 C"},
        {"from": answers, "value": "3 degrees."},
    ]
    assert read_conversation(named, "x") == read_conversation(SHARED[1:], "x")


def test_last_answer_may_be_a_call():
    """Law: the call of the last assistant turn is the response's details, and moves the id."""
    chat = read_conversation([ASK, TOOLED[2]], "x")
    assert chat.response == ""
    assert json.loads(chat.response_details)["tool_calls"] == [CALL]


def test_json_and_parquet_give_equal_chats(tmp_path):
    """Equivalence: a Parquet struct fills absent keys with nulls; turns and ids stay equal."""
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"a": {}}}}]
    rows = [{"messages": TOOLED, "tools": json.dumps(tools)}, {"messages": LEGACY, "tools": None}]
    rows[0]["messages"] = [turn for turn in TOOLED if turn["role"] != "system"]
    columns = ColumnsSection(messages="messages", tools="tools")
    lines = open_samples(write(tmp_path / "a.jsonl", rows), columns)
    table = open_samples(write(tmp_path / "a.parquet", rows), columns)
    assert lines.ids == table.ids
    assert [sample.conversation for sample in lines][1] == table[1].conversation
    assert [json.loads(sample.tools or "[]") for sample in table] == [tools, []]


def test_tool_results_and_tools_make_other_ids(tmp_path):
    """Law: rows that differ only in a tool's result, a call or the tools are other samples."""
    other = [{**turn, "content": "9 C"} if turn["role"] == "tool" else turn for turn in TOOLED]
    rows = [{"messages": TOOLED}, {"messages": other}, {"messages": TOOLED, "tools": [CALL]}]
    samples = open_samples(
        write(tmp_path / "a.jsonl", rows), ColumnsSection(messages="messages", tools="tools")
    )
    assert len(set(samples.ids)) == 3
    assert samples.notes == ()


words = st.text("ab", max_size=2)
details = st.dictionaries(st.sampled_from(["name", "tool_call_id", "thinking"]), words | st.none())


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sampled_from(["user", "tool", "system"]), words, details), max_size=4))
def test_no_turn_before_the_answer_is_lost(turns):
    """Algebra: every turn is in the conversation, in order, with what it holds beside its text."""
    cell = [{"role": role, "content": text, **more} for role, text, more in turns]
    cell = [ASK, ANSWER, *cell, ASK, {"role": "assistant", "content": "no"}]
    chat = read_conversation(cell, "x")
    last = (Turn("user", chat.prompt), *chat.followup, Turn("assistant", chat.response))
    read = [*chat.history, *last]
    assert [turn[:2] for turn in read] == [(turn["role"], turn["content"]) for turn in cell]
    held = [{k: v for k, v in more.items() if v} for _, _, more in turns]
    assert [json.loads(turn.details or "{}") for turn in read[2:-2]] == held


def chat_of(*turns):
    return [ASK, *turns]


BROKEN = {
    "image": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}, ANSWER],
        "turn 1: expected parts of type 'text' alone, got 'image_url', 'image_url'",
    ),
    "text of a part": (chat_of({**ANSWER, "content": [{"type": "text"}]}), "turn 2: .*'text'"),
    "number": (chat_of({"role": "assistant", "content": 3}), "turn 2: expected a text, got int"),
    "null": (chat_of({"role": "assistant", "content": None}), "turn 2: .*without content"),
    "no role": ([{"content": "hi"}], "turn 1: .*turn without a role"),
    "a text": (["hi"], "turn 1: expected a list of .*got str as a turn"),
    "call": (chat_of({"from": "function_call", "value": "weather"}), "turn 2: expected JSON"),
    "bare call": (chat_of({"from": "function_call", "value": "{}"}), "turn 2: expected a call"),
    "both calls": (
        chat_of({"role": "assistant", "function_call": CALL, "tool_calls": [CALL]}),
        "turn 2: holds both function_call and tool_calls",
    ),
    "depth": (
        chat_of({**ANSWER, "tool_calls": [json.loads("[" * 900 + "]" * 900)]}),
        "turn 2: nested deeper than 64 levels",
    ),
    "deep part": (chat_of({**ANSWER, "content": [json.loads('{"a":' * 900 + "1" + "}" * 900)]}),
                  "turn 2: expected parts of type 'text'"),
    "surrogate": (chat_of({**ANSWER, "name": "\ud800"}), "turn 2: no valid Unicode"),
    "unknown roles": ([{"role": "me", "content": "a"}], r"no assistant turn \(roles: 'me'\)"),
    "flag": (chat_of({**ANSWER, "weight": 0.5}), "turn 2: weight: expected 0, 1, .*another float"),
    "unlearnt answer": (chat_of({**ANSWER, "weight": 0}), "turn 2: its weight says not learnt"),
    "learnt question": ([{**ASK, "train": True}, ANSWER], "turn 1: its weight says learnt"),
    "two flags": (chat_of({**ANSWER, "weight": 0, "train": True}), "turn 2: .*contradict"),
    "earlier answer": (chat_of({**ANSWER, "weight": 1}, ASK, ANSWER), "turn 2: .* = 'last'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_chat_names_its_turn(tmp_path, case):
    """Edge: file, line, column and turn of what no text model reads; no text of it."""
    turns, match = BROKEN[case]
    source = write(tmp_path / "a.jsonl", [{"messages": [ASK, ANSWER]}, {"messages": turns}])
    with pytest.raises(DataError, match=f"line 2, messages.*{match}"):
        open_samples(source, CHATS)


def test_flags_that_agree_with_the_loss_are_read(tmp_path):
    """Law: weights of turns pass where they say what ``train_on`` does, for each of its values."""
    last = chat_of({**ANSWER, "weight": 0}, {**ASK, "weight": 0}, {**ANSWER, "weight": 1})
    both = chat_of({**ANSWER, "train": True}, ASK, {**ANSWER, "train": True})
    for turns, train_on in ((last, "last"), (both, "all")):
        source = write(tmp_path / f"{train_on}.jsonl", [{"messages": turns}])
        columns = ColumnsSection(messages="messages", train_on=train_on)
        (sample,) = open_samples(source, columns)
        assert [turn.details for turn in sample.conversation] == [""] * 4
        other = replace(columns, train_on={"last": "all", "all": "last"}[train_on])
        with pytest.raises(DataError, match="turn 2: its weight says"):
            open_samples(source, other)


def test_unread_parts_of_chats_are_told_once(tmp_path):
    """Law: turns after the last answer and details of the question are counted, with the first."""
    rows = [
        {"messages": [ASK, ANSWER]},
        {"messages": [{**ASK, "name": "Ann"}, {**ANSWER, "time": 3, "x": None}, ASK]},
        {"messages": [ASK, ANSWER, ASK]},
    ]
    samples = open_samples(write(tmp_path / "a.jsonl", rows), CHATS)
    assert samples.notes == (
        f"{samples.source}: not read: name of the last question, in 1 row, first in line 2",
        f"{samples.source}: not read: key 'time' of turns, in 1 row, first in line 2",
        f"{samples.source}: not read: turns after the last answer, in 2 rows, first in line 2",
    )
    assert samples[:1].notes == samples.notes
    assert samples[0].response_details == samples[1].response_details == ""


@pytest.mark.parametrize("cell", ["3", "[1]", '["a"]', [3], 3, "[NaN]", {"name": "f"}])
def test_broken_tools_are_named(cell):
    """Edge: tools that are no list of objects name their place."""
    with pytest.raises(DataError, match="line 7, tools: expected"):
        read_tools(cell, "x: line 7, tools")


def test_tools_are_read_in_every_form():
    """Law: a list, JSON text and texts of objects give one JSON list; nothing gives no tools."""
    expected = '[{"name":"f","parameters":{}}]'
    tool = {"name": "f", "parameters": {}, "strict": None}
    forms = ([tool], json.dumps([tool]), [json.dumps(tool)])
    assert {read_tools(form, "x") for form in forms} == {expected}
    assert {read_tools(form, "x") for form in (None, "", " ", "[]", [], "null")} == {""}
