"""Laws of adapters from Python: what folders give, round trips, and refusals."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import fedwinnow as fw
from fedwinnow.server.adapter_tools.merge_folders import merge_folders


def adapter(seed, rank=3, modules=("q_proj", "v_proj"), base="base"):
    """Random factors of the tiny model's first layer."""
    draw = torch.Generator().manual_seed(seed)
    names = [f"model.layers.0.self_attn.{module}" for module in modules]
    outputs = {"q_proj": 32, "v_proj": 16}
    return fw.Adapter(
        base=base,
        a={name: torch.randn(rank, 32, generator=draw) for name in names},
        b={
            name: torch.randn(outputs[name.rpartition(".")[2]], rank, generator=draw)
            for name in names
        },
        scales=dict.fromkeys(names, 0.5),
    )


def same(one, other):
    """Whether two adapters hold the same factors and scales."""
    return (
        one.scales == other.scales
        and one.modules == other.modules
        and all(
            torch.equal(x[name], y[name])
            for x, y in ((one.a, other.a), (one.b, other.b))
            for name in one.modules
        )
    )


def test_saved_adapter_is_loaded_as_it_was(tmp_path):
    """Factors, scales and the name of the base come back; an adapter's folder is replaced."""
    made = adapter(1)
    assert fw.save_adapter(made, tmp_path / "A") == tmp_path / "A"
    fw.save_adapter(made, tmp_path / "A")
    found = fw.load_adapter(tmp_path / "A")
    assert found.base == "base"
    assert same(found, made)
    assert fw.load_adapter(tmp_path / "A", base="other").base == "other"


def test_saved_adapter_is_one_that_peft_loads(tmp_path, tiny_model_folder):
    """PEFT reads the folder and finds the same factors."""
    made = adapter(1)
    fw.save_adapter(made, tmp_path / "A", base=str(tiny_model_folder))
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    state = PeftModel.from_pretrained(base, tmp_path / "A").state_dict()
    for name in made.modules:
        key = f"base_model.model.{name}.lora_A.default.weight"
        assert torch.equal(state[key], made.a[name])


def test_saving_writes_over_nothing_else_and_names_the_base(tmp_path):
    """A folder with other files, a file, or a fingerprint for a name: each is refused."""
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(fw.errors.OutputError, match="something else already"):
            fw.save_adapter(adapter(1), place)
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"
    for base in ("", "0" * 64):
        with pytest.raises(fw.errors.ConfigError, match="give base= its hub name or folder"):
            fw.save_adapter(adapter(1, base=base), tmp_path / "A")


@pytest.mark.parametrize("rule", ["core_svd", "stack", "ties", "knots"])
def test_merge_is_the_merge_of_the_folders(tmp_path, rule):
    """Bit for bit, for unequal ranks, modules and weights."""
    adapters = {"a": adapter(1), "b": adapter(2, rank=5, modules=("q_proj",))}
    for name, one in adapters.items():
        fw.save_adapter(one, tmp_path / name)
    folders = [tmp_path / name for name in adapters]
    merge_folders(folders, tmp_path / "out", rule=rule, weights=(3, 1))
    merged = fw.merge(adapters, rule=rule, weights={"a": 3.0, "b": 1.0})
    assert same(merged.adapter, fw.load_adapter(tmp_path / "out"))
    assert merged.adapter.base == "base"


def test_merge_of_nothing_in_common_is_refused():
    """Edge: adapters of other modules would each be shrunk to its share; the name is said."""
    apart = {"a": adapter(1, modules=("q_proj",)), "b": adapter(2, modules=("v_proj",))}
    with pytest.raises(fw.errors.ModelError, match="a: changes no module that another"):
        fw.merge(apart)


def test_merge_takes_a_rule_with_settings():
    """A built rule is used as it is; without weights all count alike."""
    adapters = {"a": adapter(1), "b": adapter(2)}
    merged = fw.merge(adapters, rule=fw.build("merging", "core_svd", rank=1))
    assert {len(factor) for factor in merged.adapter.a.values()} == {1}
    assert 0 < merged.report["discarded_energy"] < 1
    weighted = fw.merge(adapters, weights={"a": 2.0, "b": 2.0})
    assert same(fw.merge(adapters).adapter, weighted.adapter)


def test_merge_refuses_what_does_not_belong_together():
    """Other bases, other shapes, foreign weights, no adapter, and a rule for sparse ones."""
    one = adapter(1)
    with pytest.raises(fw.errors.ModelError, match="different bases \\(a: base; b: other"):
        fw.merge({"a": one, "b": replace(adapter(2), base="other")})
    shorter = replace(one, a={name: factor[:, 1:] for name, factor in one.a.items()})
    with pytest.raises(fw.errors.ModelError, match=r"b, module .* merge adapters of one base"):
        fw.merge({"a": one, "b": shorter})
    for adapters, weights in (({"a": one}, {"b": 1.0}), ({}, None)):
        with pytest.raises(fw.errors.ConfigError, match="adapters and a weight of each"):
            fw.merge(adapters, weights=weights)
    for rule in ("sparse_sum", fw.build("merging", "sparse_sum")):
        with pytest.raises(fw.errors.PluginError, match="merges sparse differences"):
            fw.merge({"a": one}, rule=rule)
    with pytest.raises(fw.errors.EmptySelectionError):
        fw.merge({"a": one}, weights={"a": 0.0})
