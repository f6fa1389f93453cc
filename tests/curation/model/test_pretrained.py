"""Laws of the door to transformers and PEFT: load, refuse, copy in and out, answer."""

import hashlib
import shutil
import socket

import pytest
import torch
from transformers import AutoModelForCausalLM

from fedwinnow.curation.config.scoring import AdapterSection, ModelSection
from fedwinnow.curation.datatypes import Adapter, Sample
from fedwinnow.curation.errors import IncompatibleAdapterError, ModelError
from fedwinnow.curation.model.lora_model import (
    fingerprint,
    get_adapter,
    initial_adapter,
    set_adapter,
)
from fedwinnow.curation.model.pretrained import generate, load_model, load_tokenizer
from fedwinnow.simulations.datasets.tiny_model import write_tiny_model

ADAPTER = AdapterSection(rank=4, alpha=8.0, targets=("q_proj", "v_proj"))


def same(one, other):
    return one.scales == other.scales and all(
        torch.equal(one.a[name], other.a[name]) and torch.equal(one.b[name], other.b[name])
        for name in one.modules
    )


def another(loaded, rank=4, seed=1):
    start, draw = get_adapter(loaded), torch.Generator().manual_seed(seed)
    return Adapter(
        base=start.base,
        a={k: torch.randn(rank, v.shape[1], generator=draw) for k, v in start.a.items()},
        b={k: torch.randn(v.shape[0], rank, generator=draw) for k, v in start.b.items()},
        scales=dict.fromkeys(start.scales, 0.75),
    )


def test_load_of_a_folder_makes_no_network_call(tiny_model_folder, monkeypatch, capfd):
    """A local folder is read with every socket forbidden, and without a progress bar."""

    def refused(*_, **__):
        pytest.fail("a network call")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    load_model(ModelSection(name=str(tiny_model_folder)), ADAPTER, seed=0)
    assert "%|" not in "".join(capfd.readouterr())


def test_fingerprint_is_the_hash_of_the_base_weights(tiny_model, tiny_model_folder, tmp_path):
    """SHA-256 over name, shape, number format and bytes, in order of name, without adapter."""
    digest = hashlib.sha256()
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    for name, value in sorted(base.state_dict().items()):
        digest.update(f"{name}|{tuple(value.shape)}|{value.dtype}\n".encode())
        digest.update(value.contiguous().numpy().tobytes())
    assert tiny_model.fingerprint == digest.hexdigest()
    other = write_tiny_model(tmp_path / "other", seed=5)
    section = ModelSection(name=str(other))
    assert load_model(section, ADAPTER, seed=0).fingerprint != tiny_model.fingerprint
    assert fingerprint(base.bfloat16()) != tiny_model.fingerprint


def test_loaded_base_is_frozen_and_the_factors_are_not(tiny_model):
    """Only the adapter trains; the model is in eval mode."""
    for name, parameter in tiny_model.model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
    assert not any(module.training for module in tiny_model.model.modules())


def test_base_in_bfloat16_keeps_factors_in_float32(tiny_model_folder):
    """model.dtype is that of the base alone."""
    section = ModelSection(name=str(tiny_model_folder), dtype="bfloat16")
    loaded = load_model(section, ADAPTER, seed=0)
    for name, parameter in loaded.model.named_parameters():
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name


def test_missing_targets_are_named_with_what_there_is(tiny_model_folder):
    """The error lists the absent targets and the model's linear layers."""
    wrong = AdapterSection(targets=("q_proj", "c_attn"))
    with pytest.raises(ModelError, match=r"c_attn are no linear.*down_proj.*q_proj") as caught:
        load_model(ModelSection(name=str(tiny_model_folder)), wrong, seed=0)
    assert "q_proj, c_attn" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_four_bits_without_cuda_are_refused(tiny_model_folder):
    """The error names the setting and the cure."""
    section = ModelSection(name=str(tiny_model_folder), quantization="4bit")
    with pytest.raises(ModelError, match=r"model\.quantization.*CUDA.*'none'"):
        load_model(section, ADAPTER, seed=0)


def test_model_that_is_not_there_is_named(tiny_model_folder, tmp_path):
    """An empty name, an empty folder, broken weights, a missing GGUF: each names model.name."""
    with pytest.raises(ModelError, match=r"model\.name is empty"):
        load_tokenizer(ModelSection())
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_folder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    for section in (
        ModelSection(name=str(tmp_path / "empty")),
        ModelSection(name=str(broken)),
        ModelSection(name=str(tiny_model_folder), gguf_file="absent.gguf"),
    ):
        with pytest.raises(ModelError, match=r"model\.name"):
            load_model(section, ADAPTER, seed=0)


def test_initial_adapter_depends_on_the_seed_alone(tiny_model):
    """Seeded A within ±1/√inputs, zero B, whatever was loaded before; rsLoRA scales by √r."""
    first = initial_adapter(tiny_model, seed=7)
    set_adapter(tiny_model, another(tiny_model, rank=9))
    torch.manual_seed(123)
    assert same(first, initial_adapter(tiny_model, seed=7))
    assert not same(first, initial_adapter(tiny_model, seed=8))
    for name in first.modules:
        bound = first.a[name].shape[1] ** -0.5
        assert first.a[name].shape[0] == 4
        assert 0.9 * bound < float(first.a[name].abs().max()) <= bound
        assert not first.b[name].any()
        assert first.scales[name] == 2.0
    factors = list(first.a.values())
    assert not torch.equal(factors[0], factors[2])


def test_rslora_scale_is_alpha_over_the_root_of_the_rank(tiny_model_folder):
    """s = α / √r."""
    section = AdapterSection(rank=4, alpha=8.0, rslora=True, targets=("q_proj",))
    loaded = load_model(ModelSection(name=str(tiny_model_folder)), section, seed=0)
    assert set(get_adapter(loaded).scales.values()) == {4.0}


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_set_then_get_is_an_exact_copy(tiny_model, rank):
    """Any rank goes in and comes out bit for bit, and shares no memory with what was given."""
    given = another(tiny_model, rank=rank)
    set_adapter(tiny_model, given)
    found = get_adapter(tiny_model)
    assert same(found, given)
    kept = {name: factor.clone() for name, factor in given.a.items()}
    for factor in (*given.a.values(), *found.a.values()):
        factor.zero_()
    again = get_adapter(tiny_model)
    assert all(torch.equal(again.a[name], kept[name]) for name in kept)


def test_set_adapter_that_does_not_fit_changes_nothing(tiny_model):
    """Another base, other modules, other outer shapes: refused by name, the model as before."""
    before, good = get_adapter(tiny_model), another(tiny_model)
    name = good.modules[-1]
    less = {key: value for key, value in good.b.items() if key != name}
    wide = {**good.a, name: torch.zeros(4, 33)}
    wrong = [
        ("base", Adapter(base="other", a=good.a, b=good.b, scales=good.scales)),
        ("other modules", Adapter(base=good.base, a=good.a, b=less, scales=good.scales)),
        ("other modules", Adapter(base=good.base, a=good.a, b=good.b, scales={})),
        (r"\(rank, 32\)", Adapter(base=good.base, a=wide, b=good.b, scales=good.scales)),
    ]
    for match, adapter in wrong:
        with pytest.raises(IncompatibleAdapterError, match=match):
            set_adapter(tiny_model, adapter)
    assert same(get_adapter(tiny_model), before)


def test_generate_takes_the_likeliest_token_each_time(tiny_model):
    """Greedy decoding equals an argmax loop; the model's mode is kept."""
    set_adapter(tiny_model, another(tiny_model))
    tiny_model.model.train()
    sample = Sample(id="s", prompt="why?", response="")
    (answer,) = generate(tiny_model, [sample], max_new_tokens=5)
    assert tiny_model.model.training
    tiny_model.model.eval()
    tokenizer = tiny_model.tokenizer
    turns = [{"role": "user", "content": "why?"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = len(tokens)
    for _ in range(5):
        with torch.no_grad():
            following = int(tiny_model.model(torch.tensor([tokens])).logits[0, -1].argmax())
        tokens.append(following)
        if following == tokenizer.eos_token_id:
            break
    assert answer == tokenizer.decode(tokens[start:], skip_special_tokens=True).strip()
