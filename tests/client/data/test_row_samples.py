"""Columns: prompts of several, guesses of what holds what, and what is not read."""

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.client.data.column_guess import guess_columns, map_columns
from fedwinnow.client.data.samples import open_samples
from fedwinnow.curation.config.prompt_template import fill_template, template_columns
from fedwinnow.curation.config.scoring import ColumnsSection
from fedwinnow.curation.errors import ConfigError, DataError

ALPACA = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    {"instruction": "Greet.", "input": "", "output": "Hello."},
    {"instruction": "Name one.", "output": "Iron."},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_prompt_of_alpaca_holds_its_input(tmp_path):
    """Law: instruction and input are one prompt; an empty or absent input leaves no blank line."""
    source = write(tmp_path / "a.jsonl", ALPACA)
    columns = map_columns(source)
    assert columns.prompt_template == "{instruction}\n\n{input}"
    samples = open_samples(source, columns)
    assert [sample.prompt for sample in samples] == ["Add.\n\n1 and 2", "Greet.", "Name one."]
    assert samples.notes == ()
    assert samples.reading == (
        f"{source}: 3 rows; prompt from '{{instruction}}\\n\\n{{input}}', response from output"
    )


GUESSES = {
    ("prompt", "context", "response"): "{prompt}\n\n{context}",
    ("question", "context", "answer"): "{question}\n\n{context}",
    ("context", "instruction", "response"): "{instruction}\n\n{context}",
    ("Instruction", "Input", "Output"): "{Instruction}\n\n{Input}",
    ("input", "output"): "",
    ("prompt", "response", "text"): "",
    ("messages", "prompt", "context"): "",
}


@pytest.mark.parametrize("names", GUESSES)
def test_template_is_guessed_from_names(names):
    """Oracle: prompt, instruction or question with input or context make a template."""
    assert guess_columns(names, "x").prompt_template == GUESSES[names]


def test_columns_that_say_nothing_are_named_with_a_cure():
    """Edge: names with spaces stand in quotes; of a JSON object, a list under a key is thought."""
    with pytest.raises(DataError, match=r"columns 'the data', n hold no chat .* columns$"):
        guess_columns(("the data", "n"), "x.jsonl")
    with pytest.raises(DataError, match=r"list under a key: write that list alone"):
        guess_columns(("data",), "x.json")
    assert guess_columns(("messages", "functions"), "x.jsonl").tools == "functions"


def test_columns_that_are_not_read_are_told(tmp_path):
    """Law: unused columns that hold something are named with their rows; empty ones are not."""
    rows = [
        {"": 0, "prompt": "p", "response": "r", "id": 1, "context": "", "x": None},
        {"": 1, "prompt": "p", "response": "r", "id": 2, "context": "c", "x": []},
    ]
    source = write(tmp_path / "a.jsonl", rows)
    told = f"{source}: columns that are not read: (without a name) (2 rows), id (2 rows)"
    (note,) = open_samples(source, ColumnsSection()).notes
    assert note.startswith(f"{told}, context (1 row); ")
    columns = ColumnsSection(prompt_template="{prompt} {context}", labels=("id", ""))
    assert open_samples(source, columns).notes == ()


text = st.text("ab {}\n", max_size=4)


@given(text, text, text)
def test_template_puts_each_value_in_its_place(first, second, third):
    """Algebra: values stand as they are, braces are no columns, empty paragraphs vanish."""
    values = {"a": first, "b": second, "c d[*]": third}
    filled = f"<{first}>{{b}}{second}" if first.strip() or second.strip() else ""
    assert fill_template("<{a}>{{b}}{b}", values) == filled
    parts = [f"A: {first}"] * bool(first.strip()) + ["end"]
    parts += [f"{second}|{third}"] * bool(second.strip() or third.strip())
    assert fill_template("A: {a}\n\nend\n\n{b}|{c d[*]}", values) == "\n\n".join(parts)
    assert template_columns("{a}{{x}}{c d[*]}{a}") == ("a", "c d[*]")


@pytest.mark.parametrize("template", ["no column", "{a", "a}", "{}", "{a}}", "{{a}}"])
def test_broken_template_is_refused(template):
    """Edge: a template without a column or with a lone brace names its setting."""
    with pytest.raises(ConfigError, match=r"columns\.prompt_template"):
        ColumnsSection(prompt_template=template)
    with pytest.raises(ConfigError, match=r'prompt_template.*"" where columns\.messages'):
        ColumnsSection(prompt_template="{a}", messages="messages")


def test_unknown_column_names_what_there_is(tmp_path):
    """Edge: a column of the template or tools that no row has is an error, as is a number."""
    source = write(tmp_path / "a.jsonl", ALPACA)
    match = (
        r"a\.jsonl: no row has column 'inputs', which columns\.\w+ names; there are instruction,"
    )
    for columns in (
        ColumnsSection(prompt_template="{instruction}{inputs}", response="output"),
        ColumnsSection(prompt="instruction", response="output", tools="inputs"),
    ):
        with pytest.raises(DataError, match=match):
            open_samples(source, columns)
    with pytest.raises(DataError, match=r"line 1: column 'x' is missing; there are instruction"):
        open_samples(source, ColumnsSection(prompt_template="{x}", response="output"))
    numbers = write(tmp_path / "n.jsonl", [{"a": "q", "b": 3, "response": "r", "d": ["x"]}])
    for columns, where in (
        (ColumnsSection(prompt_template="{a} {b}"), "line 1, b: expected a text, got int"),
        (
            ColumnsSection(prompt="a", domain="d"),
            "line 1, d: expected a text or a number",
        ),
        (ColumnsSection(prompt="a", labels=("d",)), "line 1, d: expected a text or a number, got"),
    ):
        with pytest.raises(DataError, match=where):
            open_samples(numbers, columns)


def test_columns_with_pattern_characters_are_names(tmp_path):
    """Edge: brackets, stars and question marks in column and file names are no patterns."""
    path = tmp_path / "data [1]*?.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["q[0]", "a*?", "k"], ["p", "r", "l"]])
    columns = ColumnsSection(prompt="q[0]", response="a*?", labels=("k",))
    (sample,) = open_samples(str(path), columns)
    assert (sample.prompt, sample.response, sample.labels) == ("p", "r", {"k": "l"})
