"""Laws of models that the caller has loaded: the same numbers as by path, and clear refusals."""

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

from fedwinnow.curation.config.scoring import AdapterSection, ModelSection
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.model.lora_model import (
    base_weights,
    fingerprint,
    fingerprint_of,
    get_adapter,
)
from fedwinnow.curation.model.pretrained import adopt_model, load_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
SECTION = AdapterSection(rank=4, alpha=8.0)


@pytest.fixture
def base(tiny_model_folder):
    """The tiny model as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder)


@pytest.fixture
def tokenizer(tiny_model_folder):
    """Its tokenizer."""
    return load_tokenizer(ModelSection(name=str(tiny_model_folder)))


def lora(**changes):
    """A configuration of PEFT's."""
    given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    return LoraConfig(**(given | {"task_type": "CAUSAL_LM"} | changes))


def test_own_base_is_the_model_that_its_path_gives(base, tokenizer, tiny_model):
    """Fingerprint and seeded adapter are those of the same model loaded by name."""
    loaded = adopt_model(base, tokenizer, SECTION, seed=0)
    mine, theirs = get_adapter(loaded), get_adapter(tiny_model)
    assert loaded.fingerprint == tiny_model.fingerprint
    assert mine.scales == theirs.scales
    assert all(torch.equal(mine.a[name], theirs.a[name]) for name in theirs.modules)
    assert repr(loaded) == (
        "LoadedModel(PeftModelForCausalLM, rank 4 in 4 modules, base "
        f"{loaded.fingerprint[:12]} on cpu)"
    )


def test_own_peft_model_is_taken_unchanged(base, tokenizer):
    """Weights, modes and what trains stay as they were; the fingerprint is the base's."""
    expected = fingerprint(base)
    model = get_peft_model(base, lora(lora_dropout=0.5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [parameter.requires_grad for parameter in model.parameters()]
    loaded = adopt_model(model, tokenizer, SECTION, seed=5)
    assert loaded.model is model
    assert loaded.fingerprint == expected == fingerprint_of(base_weights(model))
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, r"use_dora = false"),
        ({"bias": "all"}, r"bias = 'none'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save"),
        ({"task_type": "TOKEN_CLS"}, r"task_type = 'CAUSAL_LM'; got TOKEN_CLS"),
        ({"target_modules": ["embed_tokens"]}, r"embed_tokens: its adapter has no linear factors"),
    ],
)
def test_own_adapter_that_is_no_plain_lora_is_refused(base, tokenizer, changes, words):
    """The error names the setting, what is expected, and what came."""
    model = get_peft_model(base, lora(**changes))
    with pytest.raises(ModelError, match=rf"load_model: .*{words}"):
        adopt_model(model, tokenizer, SECTION, seed=0)


def test_own_adapter_of_another_method_is_refused(base, tokenizer):
    """Only LoRA is read."""
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    with pytest.raises(ModelError, match=r"peft_type = 'LORA'"):
        adopt_model(get_peft_model(base, config), tokenizer, SECTION, seed=0)


def test_own_adapter_must_be_the_only_one_and_active(base, tokenizer):
    """A second adapter, another name, a merged or a disabled adapter: each has its cure."""
    model = get_peft_model(base, lora())
    model.merge_adapter()
    with pytest.raises(ModelError, match="unmerge it first"):
        adopt_model(model, tokenizer, SECTION, seed=0)
    model.unmerge_adapter()
    with model.disable_adapter(), pytest.raises(ModelError, match="is not active; enable it"):
        adopt_model(model, tokenizer, SECTION, seed=0)
    model.add_adapter("second", lora())
    with pytest.raises(ModelError, match="one adapter called 'default', got 'default', 'second'"):
        adopt_model(model, tokenizer, SECTION, seed=0)


def test_own_model_that_is_no_causal_one_is_refused(base, tokenizer):
    """No classifier, no foreign module, no base with loose LoRA layers, no foreign tokenizer."""
    with pytest.raises(ModelError, match="causal language model, got LlamaForSequenceClass"):
        adopt_model(LlamaForSequenceClassification(base.config), tokenizer, SECTION, seed=0)
    with pytest.raises(ModelError, match="or a model of transformers or PEFT, got Linear"):
        adopt_model(torch.nn.Linear(2, 2), tokenizer, SECTION, seed=0)
    tokenizer.add_tokens(["<more>"])
    with pytest.raises(ModelError, match="give the tokenizer of this model"):
        adopt_model(base, tokenizer, SECTION, seed=0)


def test_own_base_is_adopted_once(base, tokenizer):
    """A base that holds LoRA layers already is refused: give the PeftModel."""
    loaded = adopt_model(base, tokenizer, SECTION, seed=0)
    with pytest.raises(ModelError, match=r"holds a LoRA layer in .* already; give the PeftModel"):
        adopt_model(base, tokenizer, SECTION, seed=0)
    assert adopt_model(loaded.model, tokenizer, SECTION, seed=0).fingerprint == loaded.fingerprint
