"""Laws of adapters read from PEFT folders factor by factor."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedwinnow.curation.adapters import peft_reader
from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.adapters.peft_folder import export_adapter, load_adapter
from fedwinnow.curation.adapters.peft_reader import LazyFactor, open_adapter
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import ModelError

MODULES = {"layers.0.q": (6, 2, 5), "layers.1.v": (4, 3, 7)}


def adapter(dtype=torch.float32) -> Adapter:
    """Two modules of different rank and scale."""
    draw = torch.Generator().manual_seed(0)
    return Adapter(
        base="base",
        a={m: torch.randn(r, n, generator=draw).to(dtype) for m, (_, r, n) in MODULES.items()},
        b={m: torch.randn(k, r, generator=draw).to(dtype) for m, (k, r, _) in MODULES.items()},
        scales={"layers.0.q": 2.0, "layers.1.v": 0.5},
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_opened_adapter_is_the_one_that_was_written(tmp_path, dtype):
    """Names, shapes, scales and bits come back, lazily or at once, in the types of the file."""
    one = adapter(dtype)
    export_adapter(one, tmp_path / "a", base_name="base", target_modules=("q", "v"))
    opened = open_adapter(tmp_path / "a", base="base")
    assert opened.shapes == MODULES
    assert opened.adapter.scales == one.scales
    assert adapter_hash(opened.adapter) == adapter_hash(one)
    assert adapter_hash(load_adapter(tmp_path / "a", base="base")) == adapter_hash(one)


def test_opened_factor_is_read_when_it_is_asked_for(tmp_path, monkeypatch):
    """Each request reads the one factor that it names, and nothing is kept from earlier ones."""
    export_adapter(adapter(), tmp_path / "a", base_name="base", target_modules=("q", "v"))
    asked = []
    real = peft_reader.safe_open

    class Counting:
        def __init__(self, *words, **named) -> None:
            self.file = real(*words, **named)

        def __getattr__(self, name) -> object:
            return getattr(self.file, name)

        def get_tensor(self, key):
            asked.append(key)
            return self.file.get_tensor(key)

    monkeypatch.setattr(peft_reader, "safe_open", Counting)
    opened = open_adapter(tmp_path / "a").adapter
    asked.clear()  # tests check shapes where an adapter is made, which looks at its factors
    for _ in range(2):
        assert opened.a["layers.1.v"].shape == (3, 7)
    assert asked == ["base_model.model.layers.1.v.lora_A.weight"] * 2


def test_lazy_mapping_knows_its_names_only():
    """It is a mapping: length, order and membership without making anything; no other name."""

    def never(name):
        raise AssertionError(name)

    lazy = LazyFactor(["b", "a"], never)
    assert list(lazy) == ["b", "a"]
    assert len(lazy) == 2
    assert lazy.get("c") is None
    with pytest.raises(AssertionError, match="b"):
        lazy["b"]


@pytest.mark.parametrize("rslora", [False, True])
def test_opened_scale_follows_alpha_rank_and_patterns(tmp_path, rslora):
    """α / r or α / √r with the module's own rank; the first pattern that matches gives α."""
    export_adapter(adapter(), tmp_path / "a", base_name="base", target_modules=("q", "v"))
    file = tmp_path / "a" / "adapter_config.json"
    words = {"lora_alpha": 6, "use_rslora": rslora, "alpha_pattern": {"v": 9, "1.v": 1}}
    file.write_text(json.dumps(json.loads(file.read_text()) | words))
    scales = open_adapter(tmp_path / "a").adapter.scales
    power = 0.5 if rslora else 1.0
    assert scales == pytest.approx({"layers.0.q": 6 / 2**power, "layers.1.v": 9 / 3**power})


def test_opened_folder_that_is_cut_short_is_named(tmp_path):
    """A truncated file, no file and broken words are errors that name the folder."""
    export_adapter(adapter(), tmp_path / "a", base_name="base", target_modules=("q", "v"))
    file = tmp_path / "a" / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    with pytest.raises(
        ModelError, match=r"a/adapter_model\.safetensors: expected a whole.*cut short"
    ):
        open_adapter(tmp_path / "a")
    file.unlink()
    with pytest.raises(
        ModelError, match=r"a: expected adapter_model\.safetensors, and there is none"
    ):
        open_adapter(tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_text("[]")
    with pytest.raises(ModelError, match="table of settings"):
        open_adapter(tmp_path / "a")


def test_opened_whole_modules_are_apart_from_factors(tmp_path):
    """What modules_to_save names is no factor; what nobody names is refused."""
    head = {"head.weight": torch.ones(3, 2)}
    settings = {"modules_to_save": ["head"]}
    target = tmp_path / "a"
    words = {"base_name": "base", "target_modules": ("q", "v")}
    export_adapter(adapter(), target, **words, settings=settings, saved=head)
    opened = open_adapter(target)
    assert list(opened.saved) == ["head.weight"]
    assert torch.equal(opened.saved["head.weight"], head["head.weight"])
    assert set(opened.adapter.modules) == set(MODULES)
    with pytest.raises(Exception, match="modules_to_save"):
        load_adapter(target, base="base")
    weights = load_file(target / "adapter_model.safetensors")
    save_file(weights | {"base_model.model.tail.weight": torch.ones(2)},
              target / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(ModelError, match=r"tail\.weight is no LoRA factor"):
        open_adapter(target)
