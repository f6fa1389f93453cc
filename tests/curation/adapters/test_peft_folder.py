"""Laws of an adapter on disk: PEFT reads what we write, we read what PEFT writes."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from fedwinnow.curation.adapters import peft_folder
from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.adapters.peft_folder import export_adapter, load_adapter
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import IncompatibleAdapterError, OutputError
from fedwinnow.curation.model.lora_model import get_adapter, set_adapter

TARGETS = ("q_proj", "v_proj")


def mixed(loaded):
    """An adapter whose modules differ in rank and scale."""
    start, draw = get_adapter(loaded), torch.Generator().manual_seed(3)
    a, b, scales = {}, {}, {}
    for index, name in enumerate(start.modules):
        rank = (2, 4, 4, 7)[index % 4]
        a[name] = torch.randn(rank, start.a[name].shape[1], generator=draw)
        b[name] = torch.randn(start.b[name].shape[0], rank, generator=draw)
        scales[name] = (0.5, 2.0, 2.0, 1.25)[index % 4]
    return Adapter(base=start.base, a=a, b=b, scales=scales)


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(6, 26)[None], use_cache=False).logits


def test_exported_folder_gives_peft_the_same_logits(tiny_model, tiny_model_folder, tmp_path):
    """Export → ``PeftModel.from_pretrained`` = the model itself, mixed ranks and scales too."""
    set_adapter(tiny_model, mixed(tiny_model))
    folder = tmp_path / "adapter"
    export_adapter(
        get_adapter(tiny_model), folder, base_name=str(tiny_model_folder), target_modules=TARGETS
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    loaded = PeftModel.from_pretrained(base, folder).eval()
    assert torch.equal(logits(loaded), logits(tiny_model.model))


def test_export_then_load_is_the_same_adapter(tiny_model, tmp_path):
    """Factors and scales come back bit for bit, also over an older folder."""
    folder = tmp_path / "adapter"
    for adapter in (get_adapter(tiny_model), mixed(tiny_model)):
        export_adapter(adapter, folder, base_name="base", target_modules=TARGETS, dropout=0.1)
        assert adapter_hash(load_adapter(folder, base=adapter.base)) == adapter_hash(adapter)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


@pytest.mark.parametrize("rslora", [False, True])
def test_folder_of_peft_itself_loads(tiny_model, tiny_model_folder, tmp_path, rslora):
    """PEFT's own ``save_pretrained`` with rank and alpha patterns gives the same logits."""
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=rslora,
        target_modules=list(TARGETS),
        rank_pattern={"layers.1.self_attn.q_proj": 2},
        alpha_pattern={"v_proj": 3},
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    net = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_folder), config).eval()
    net.save_pretrained(tmp_path)
    set_adapter(tiny_model, load_adapter(tmp_path, base=tiny_model.fingerprint))
    assert torch.allclose(logits(tiny_model.model), logits(net), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "value"), [("use_dora", True), ("bias", "all"), ("peft_type", "IA3")]
)
def test_folder_of_another_kind_is_refused(tiny_model, tmp_path, key, value):
    """DoRA, biases and other adapters are refused by name."""
    export_adapter(get_adapter(tiny_model), tmp_path / "a", base_name="b", target_modules=TARGETS)
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: value}))
    with pytest.raises(IncompatibleAdapterError, match=key):
        load_adapter(tmp_path / "a", base="b")


def test_folder_that_is_none_is_refused(tmp_path):
    """A missing or broken folder is named."""
    with pytest.raises(IncompatibleAdapterError, match="nowhere"):
        load_adapter(tmp_path / "nowhere", base="b")
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(IncompatibleAdapterError, match="PEFT adapter folder"):
        load_adapter(tmp_path, base="b")


def test_failed_export_leaves_the_older_folder(tiny_model, tmp_path, monkeypatch):
    """A full disk half-way changes nothing that was there."""
    folder, adapter = tmp_path / "adapter", get_adapter(tiny_model)
    export_adapter(adapter, folder, base_name="b", target_modules=TARGETS)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(peft_folder, "save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        export_adapter(mixed(tiny_model), folder, base_name="b", target_modules=TARGETS)
    assert adapter_hash(load_adapter(folder, base=adapter.base)) == adapter_hash(adapter)
