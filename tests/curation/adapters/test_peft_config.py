"""Laws of a stranger's adapter configuration: it is read in bounded time, or refused by name."""

import json
import re
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedwinnow.curation.adapters import peft_config
from fedwinnow.curation.adapters.peft_config import NamePatterns, check_plain_lora, read_config
from fedwinnow.curation.adapters.peft_folder import export_adapter
from fedwinnow.curation.adapters.peft_reader import open_adapter
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import ModelError

NAME = "model.layers.0.self_attn.q_proj"
PARTS = [*(re.escape(NAME), "q_proj", "layers", "self", ".", r"\.", "0", "model", "^", "$"), "|"]
PARTS += ["(", ")", ".*", "[a-z_]+", r"\d+", "?", "{1,2}", "{x}", "(?=.)", r"\b", "[[:alpha:]]"]


@pytest.fixture
def folder(tmp_path):
    """An adapter of one module."""
    one = Adapter(
        base="base", a={NAME: torch.ones(2, 3)}, b={NAME: torch.ones(4, 2)}, scales={NAME: 1.0}
    )
    export_adapter(one, tmp_path / "a", base_name="base", target_modules=("q_proj",))
    return tmp_path / "a"


def changed(folder, text: str):
    """The folder with further JSON members, as text, in its configuration."""
    file = folder / "adapter_config.json"
    whole = json.dumps(json.loads(file.read_text()), indent=None)
    file.write_text(f"{whole[:-1]}, {text}}}")
    return folder


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PARTS), max_size=5).map("".join), max_size=3, unique=True))
def test_patterns_match_as_peft_matches_them(patterns):
    """Oracle: PEFT's own expression and order, for every table that is not refused."""
    config = {"peft_type": "LORA", "rank_pattern": dict.fromkeys(patterns, 8)}
    try:
        check_plain_lora(config, Path("here"))
    except ModelError:
        return
    names = (f"model._orig_mod.{NAME}", NAME)
    wanted = next(
        (p for p in patterns if any(re.match(rf"(.*\.)?({p})$", name) for name in names)), None
    )
    assert NamePatterns(config, Path("here")).first("rank_pattern", names) == wanted


@pytest.mark.parametrize("table", ["rank_pattern", "alpha_pattern"])
def test_slow_pattern_is_refused_in_bounded_time(folder, monkeypatch, table):
    """Law: patterns of a folder share one time; the message names folder, table and pattern."""
    monkeypatch.setattr(peft_config, "SECONDS", 0.2)
    slow = "((.|.)(.|.))*[A-Z]" + "x?" * 400
    changed(folder, f'"{table}": {json.dumps({slow: 8})}')
    began = time.perf_counter()
    with pytest.raises(ModelError, match=rf"{folder}: matching {table}.*takes longer") as told:
        open_adapter(folder)
    assert time.perf_counter() - began < 2
    assert len(str(told.value)) < 400 + len(str(folder))


@pytest.mark.parametrize(
    "pattern",
    [
        *("((a{1000}){1000}){1000}", "(((a{9}){9}){9}){9}", "(", "a{9999999999}"),
        *("(" * 2000, "(" * 900 + ")" * 900, "a" * 2000),
    ],
)
def test_pattern_that_is_none_or_compiles_slowly_is_refused(pattern):
    """Edge: unfolded counts, deep groups, broken and long texts; the message stays short."""
    began = time.perf_counter()
    config = {"peft_type": "LORA", "alpha_pattern": {pattern: 8}}
    with pytest.raises(ModelError, match="expected alpha_pattern = a table of at most") as told:
        check_plain_lora(config, Path("here"))
    assert time.perf_counter() - began < 1
    assert len(str(told.value)) < 400


def test_names_of_thousands_of_modules_are_looked_up():
    """Law: what a merge writes for a mixture of experts is read without matching each to each."""
    names = [f"model.layers.{i}.mlp.experts.{j}.up_proj" for i in range(40) for j in range(128)]
    table = {f"^{re.escape(name)}$": place for place, name in enumerate(names)}
    config = {"peft_type": "LORA", "rank_pattern": table}
    check_plain_lora(config, Path("here"))
    patterns = NamePatterns(config, Path("here"))
    began = time.perf_counter()
    found = [patterns.first("rank_pattern", (name, name)) for name in names]
    assert found == list(table)
    assert time.perf_counter() - began < 1


WRONG = {
    '"eva_config": NaN': "expected 'eva_config' with finite numbers",
    '"lora_alpha": 1e999': "expected 'lora_alpha' with finite numbers",
    f'"lora_alpha": {"9" * 400}': "of at most 19 digits",
    f'"lora_alpha": {"9" * 5000}': "of at most 19 digits",
    f'"eva_config": {"[" * 9}{"]" * 9}': "expected 'eva_config' with at most 8 levels",
    f'"eva_config": {"[" * 600}{"]" * 600}': "expected 'eva_config' with at most 8 levels",
    f'"eva_config": {"[" * 100_000}': "nested too deep",
    '"task_type": "\\ud800"': "surrogates not allowed",
    '"modules_to_save": 5': "expected modules_to_save = a list",
    '"modules_to_save": "lm_head"': "expected modules_to_save = a list",
    '"target_modules": [["q"]]': "expected target_modules = a list",
    '"target_modules": {"q": 1}': "expected target_modules = a list",
    '"exclude_modules": [null]': "expected exclude_modules = a list",
    '"base_model_name_or_path": ["x"]': "expected base_model_name_or_path = a text",
    '"task_type": {"a": 1}': "expected task_type = a text",
    '"lora_dropout": "much"': "expected lora_dropout = a number in",
    '"use_rslora": "no"': "expected use_rslora = true or false",
    '"alpha_pattern": ["q"]': "expected alpha_pattern = a table",
}
"""Members of a configuration → what is said of them."""


@pytest.mark.parametrize(("text", "words"), WRONG.items(), ids=map(str, range(len(WRONG))))
def test_odd_setting_is_refused_by_name(folder, text, words):
    """Law: a value that no PEFT version writes is a named mistake of the folder, shown shortly."""
    with pytest.raises(ModelError, match=re.escape(words)) as told:
        open_adapter(changed(folder, text))
    assert str(folder) in str(told.value)
    assert len(str(told.value)) < 400 + len(str(folder))


def test_configuration_beyond_its_size_is_not_read(folder, monkeypatch):
    """Edge: of a larger file no more than the limit is read; one byte less passes."""
    size = (folder / "adapter_config.json").stat().st_size
    monkeypatch.setattr(peft_config, "_BYTES", size)
    assert read_config(folder)["r"] == 2
    monkeypatch.setattr(peft_config, "_BYTES", size - 1)
    with pytest.raises(ModelError, match="it has more than"):
        read_config(folder)
