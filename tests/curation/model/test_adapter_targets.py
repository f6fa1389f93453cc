"""Laws of the modules that get an adapter: chosen by name, regex, layer; Conv1D as PEFT does."""

import copy

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

import fedwinnow as fw
from fedwinnow.client.measuring.memory import token_bytes
from fedwinnow.curation.adapters.peft_folder import export_adapter, load_adapter
from fedwinnow.curation.config.scoring import AdapterSection, ModelSection
from fedwinnow.curation.config.strict_toml import canonical_json, parse
from fedwinnow.curation.datatypes import Adapter, Sample
from fedwinnow.curation.errors import ConfigError, ModelError
from fedwinnow.curation.gradients.hooks import sample_gradients
from fedwinnow.curation.gradients.per_sample import per_sample_gradients
from fedwinnow.curation.model.adapter_targets import target_modules
from fedwinnow.curation.model.lora_model import get_adapter, set_adapter
from fedwinnow.curation.model.pretrained import adopt_model, encode, load_tokenizer
from fedwinnow.curation.model.token_losses import collate, sample_losses


def small(kind, **settings):
    """A tiny random model of a family."""
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(kind(**settings)).eval()


@pytest.fixture(scope="module")
def llama():
    """A Llama of three layers."""
    return small(
        transformers.LlamaConfig, vocab_size=24, hidden_size=16, intermediate_size=24,
        num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder):
    """The character tokenizer of the tiny model."""
    return load_tokenizer(ModelSection(name=str(tiny_model_folder)))


@pytest.fixture(scope="module")
def gpt2(tokenizer):
    """A GPT-2 of two layers, for that tokenizer."""
    return small(
        transformers.GPT2Config, vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2,
        n_positions=96, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip


@pytest.mark.parametrize("net", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("own", "peft"),
    [
        ({"targets": ("all-linear",)}, {"target_modules": "all-linear"}),
        (
            {"target_regex": r".*\.(0|1)\..*(q_proj|c_attn)"},
            {"target_modules": r".*\.(0|1)\..*(q_proj|c_attn)"},
        ),
        (
            {"targets": ("all-linear",), "layers": (1,)},
            {"target_modules": "all-linear", "layers_to_transform": None},
        ),
        (
            {"targets": ("all-linear",), "exclude": ("down_proj",)},
            {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
        ),
    ],
)
def test_chosen_modules_are_those_of_peft(request, net, own, peft):
    """Oracle: PEFT's own choice for the same words; a layer is the first number of a name."""
    if net == "gpt2" and "exclude" in own:
        own, peft = own | {"exclude": ("c_fc",)}, peft | {"exclude_modules": ["c_fc"]}
    base = request.getfixturevalue(net)
    config = LoraConfig(r=1, task_type="CAUSAL_LM", fan_in_fan_out=net == "gpt2", **peft)
    wrapped = get_peft_model(copy.deepcopy(base), config)
    expected = {n.removeprefix("base_model.model.") for n, m in wrapped.named_modules()
                if hasattr(m, "lora_A")}  # fmt: skip
    if "layers" in own:  # PEFT reads layers_to_transform with a list of names only
        expected = {name for name in expected if ".1." in name}
    assert set(target_modules(base, AdapterSection(**own), "here")) == expected


def test_names_and_layers_are_peft_s_layers_to_transform(llama):
    """Oracle: names in some layers, by PEFT's own setting."""
    section = AdapterSection(targets=("q_proj", "up_proj"), layers=(0, 2))
    config = LoraConfig(target_modules=list(section.targets), layers_to_transform=[0, 2])
    wrapped = get_peft_model(copy.deepcopy(llama), config)
    expected = {n.removeprefix("base_model.model.") for n, m in wrapped.named_modules()
                if hasattr(m, "lora_A")}  # fmt: skip
    assert set(target_modules(llama, section, "here")) == expected


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"targets": ("nonsense",)}, r"adapter\.targets: nonsense.*down_proj.*q_proj"),
        ({"targets": ("q_proj",), "layers": (1, 7)}, r"adapter\.layers: .* 0 to 2, not 7"),
        ({"target_regex": "q_proj"}, r"target_regex = 'q_proj' matches the whole name of no"),
        ({"target_regex": ".*embed_tokens"}, r"target_regex.*model\.embed_tokens.*Embedding"),
        ({"exclude": ("nothing",)}, r"adapter\.exclude: nothing"),
        ({"exclude": ("q_proj", "v_proj")}, r"leave no linear layer of here"),
    ],
)  # fmt: skip
def test_modules_that_are_not_there_are_named(llama, own, said):
    """Edge: the setting, what came and what the model has stand in the error."""
    with pytest.raises(ModelError, match=said):
        target_modules(llama, AdapterSection(**own), "here")


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"targets": ["all-linear", "q_proj"]}, r"adapter\.targets.*\['all-linear'\] alone"),
        ({"targets": "all-linear"}, r"targets: expected a list, such as \['all-linear'\]"),
        ({"targets": ["k_proj"], "target_regex": "x"}, r"adapter\.targets.*target_regex"),
        ({"layers": [-1]}, r"adapter\.layers.*from 0"),
        ({"target_regex": "("}, r"adapter\.target_regex = '\('.*no regular expression"),
        ({"target_regex": "(a|a)*b"}, r"adapter\.target_regex.*none of a group"),
        ({"target_regex": ".*.*.*.*.*x"}, r"adapter\.target_regex.*at most 4"),
    ],
)
def test_settings_that_contradict_each_other_are_named(own, said):
    """Edge: a configuration is refused by its key before a model is loaded."""
    with pytest.raises(ConfigError, match=said):
        parse(own, AdapterSection, "adapter.")


def test_new_settings_leave_the_terms_of_other_runs_as_they_were():
    """Equivalence: terms without the settings are, letter by letter, those before them."""
    assert set(parse_json(AdapterSection())) == {"rank", "alpha", "rslora", "dropout", "targets"}
    assert parse_json(AdapterSection(layers=(3,)))["layers"] == [3]


def parse_json(section):
    """The section as it travels."""
    import json

    return json.loads(canonical_json(section))


@pytest.fixture
def loaded(gpt2, tokenizer):
    """GPT-2 with an adapter of all its Conv1D, B ≠ 0."""
    section = AdapterSection(rank=3, alpha=6.0, targets=("all-linear",))
    made = adopt_model(copy.deepcopy(gpt2), tokenizer, section, seed=0)
    start, draw = get_adapter(made), torch.Generator().manual_seed(2)
    b = {k: torch.randn(v.shape, generator=draw) * 0.1 for k, v in start.b.items()}
    set_adapter(made, Adapter(base=start.base, a=start.a, b=b, scales=start.scales))
    return made


def encodings_of(loaded):
    """Four samples of unequal length."""
    samples = [Sample(id=str(i), prompt="ab " * i, response="cde"[: 1 + i % 3]) for i in range(4)]
    return [encode(loaded, sample, max_length=64) for sample in samples]


@pytest.mark.parametrize("way", ["hooks", "probe"])
def test_gradients_on_conv1d_equal_a_loop_of_single_samples(loaded, way):
    """Oracle: each factor's per-sample gradients by autograd, one sample at a time."""
    net, encodings = loaded.model.double(), encodings_of(loaded)
    lora = {n: p for n, p in net.named_parameters() if "lora_" in n}
    rows = []
    for encoding in encodings:
        loss = sample_losses(net, collate([encoding]))[0]
        rows.append(torch.autograd.grad(loss, list(lora.values())))
    expected = {
        name.removeprefix("base_model.model.")
        .replace(".lora_", ".")
        .removesuffix(".default.weight"): torch.stack(parts)
        for name, parts in zip(lora, zip(*rows, strict=True), strict=True)
    }
    found, batch = {}, collate(encodings)
    layers = dict(loaded.layers())
    with per_sample_gradients(way, loaded, layers, found.__setitem__) as source:
        source.begin(len(encodings))
        source.backward(sample_losses(net, batch))
    assert set(found) == set(expected)
    assert {name.rsplit(".", 2)[1] for name in found} == {"c_attn", "c_proj", "c_fc"}
    for name, part in found.items():
        assert (part - expected[name]).abs().max() <= 1e-12 * expected[name].abs().max(), name


def test_memory_of_a_pass_counts_conv1d(loaded, tokenizer):
    """Law: a token holds at least what the widest Conv1D puts out, and all of them for a graph."""
    wide = sum(layer.out_features for _, layer in loaded.layers())
    head = 12 * len(tokenizer)
    assert token_bytes(loaded.model, graph=True) >= 4 * 4 * wide + head
    assert token_bytes(loaded.model, graph=False) >= 4 * 4 * 64 + head


def test_model_of_ones_own_takes_the_word_for_all_linear_layers(gpt2, tokenizer):
    """Equivalence: targets = "all-linear" in Python is the list of that word."""
    made = fw.load_model(copy.deepcopy(gpt2), tokenizer=tokenizer, targets="all-linear", rank=2)
    assert len(dict(made.layers())) == 8


def test_training_on_conv1d_sums_what_samples_give(loaded):
    """Equivalence: the gradient of a training step is the sum of its samples' gradients."""
    net, batch, found = loaded.model, collate(encodings_of(loaded)), {}
    with sample_gradients(net, dict(loaded.layers()), found.__setitem__, training=True) as firing:
        sample_losses(net, batch).sum().backward()
        firing.check()
    for name, layer in loaded.layers():
        own = layer.lora_B["default"].weight.grad
        summed = found[f"{name}.B"].sum(dim=0)
        torch.testing.assert_close(own, summed, rtol=0, atol=1e-5 * float(own.abs().max()))


def test_adapter_on_conv1d_is_one_that_peft_loads_and_merges(loaded, gpt2, tmp_path):
    """Equivalence: measured model = exported folder in PEFT = the base plus transposed s · B A."""
    adapter, batch = get_adapter(loaded), collate(encodings_of(loaded))
    names = AdapterSection(targets=("all-linear",)).names_of(adapter.modules)
    export_adapter(adapter, tmp_path / "out", base_name="", target_modules=names)
    assert load_adapter(tmp_path / "out", base=adapter.base).modules == adapter.modules
    with pytest.warns(UserWarning, match="fan_in_fan_out"):  # PEFT sets it by the layer itself
        own = PeftModel.from_pretrained(copy.deepcopy(gpt2), tmp_path / "out")
    merged = copy.deepcopy(own).merge_and_unload()
    with torch.no_grad():
        expected = loaded.model(batch.tokens, attention_mask=batch.mask).logits
        for net in (own, merged):
            logits = net(batch.tokens, attention_mask=batch.mask).logits
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)  # fp32
    weights = dict(gpt2.named_parameters())
    for name in adapter.modules:
        update = (adapter.scales[name] * adapter.b[name] @ adapter.a[name]).T
        change = merged.get_submodule(name).weight - weights[f"{name}.weight"]
        torch.testing.assert_close(change, update, rtol=0, atol=1e-6)  # fp32
