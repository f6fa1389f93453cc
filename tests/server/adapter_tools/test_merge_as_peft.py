"""Laws of merged folders against PEFT's own merged weights, over families and configurations."""

import copy
import functools
import json
import math
import re
import warnings
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, PeftType, get_peft_model
from safetensors.torch import load_file, save_file

from fedwinnow.curation.adapters.comparison import compare
from fedwinnow.curation.adapters.peft_config import READ, check_plain_lora
from fedwinnow.curation.adapters.peft_folder import export_adapter
from fedwinnow.curation.adapters.peft_reader import open_adapter
from fedwinnow.curation.errors import ModelError
from fedwinnow.server.adapter_tools.merge_folders import merge_folders

WORDS = 24
LLAMA_LIKE = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": (transformers.LlamaConfig, LLAMA_LIKE | {"tie_word_embeddings": False}),
    "llama tied": (transformers.LlamaConfig, LLAMA_LIKE | {"tie_word_embeddings": True}),
    "gpt2": (
        transformers.GPT2Config,
        {"vocab_size": WORDS, "n_embd": 16, "n_layer": 2, "n_head": 2},
    ),
    "opt": (
        transformers.OPTConfig,
        {
            "vocab_size": WORDS,
            "hidden_size": 16,
            "ffn_dim": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "word_embed_proj_dim": 8,
            "max_position_embeddings": 32,
        },
    ),
    "qwen2": (transformers.Qwen2Config, LLAMA_LIKE | {"tie_word_embeddings": True}),
    "gemma2": (transformers.Gemma2Config, LLAMA_LIKE | {"head_dim": 8}),
    "neox": (
        transformers.GPTNeoXConfig,
        {key: LLAMA_LIKE[key] for key in LLAMA_LIKE if key != "num_key_value_heads"},
    ),
    "phi3": (transformers.Phi3Config, LLAMA_LIKE),
    "qwen3 moe": (
        transformers.Qwen3MoeConfig,
        LLAMA_LIKE | {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8},
    ),
    "bloom": (
        transformers.BloomConfig,
        {"vocab_size": WORDS, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    ),
}
"""Family → its configuration; two layers each."""


@functools.cache
def family(name: str):
    """A tiny random model of a family; callers copy it."""
    kind, settings = FAMILIES[name]
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(kind(**settings)).eval()


@functools.cache
def linear(name: str) -> tuple[str, ...]:
    """Last name parts of the linear layers in a family's blocks, sorted."""
    kinds = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    net = family(name)
    found = (n for n, part in net.named_modules() if isinstance(part, kinds) and ".0." in n)
    return tuple(sorted({n.rsplit(".", 1)[-1] for n in found}))


def end_of(name: str, which: str) -> str:
    """Last name part of the embedding or the head."""
    net = family(name)
    wanted = net.get_input_embeddings() if which == "embedding" else net.get_output_embeddings()
    modules = net.named_modules(remove_duplicate=False)
    return next(n for n, part in modules if part is wanted).rsplit(".", 1)[-1]


def settings(name: str, case: str) -> dict:
    """PEFT's settings of a case for a family."""
    first, last = linear(name)[0], linear(name)[-1]
    embedding, head = end_of(name, "embedding"), end_of(name, "head")
    given = {
        "plain": {"target_modules": [first, last]},
        "regex": {"target_modules": rf".*\.1\..*({first}|{last})"},
        "all-linear": {"target_modules": "all-linear"},
        "patterns": {
            "target_modules": [first, last],
            "rank_pattern": {rf".*\.0\..*{first}": 1, last: 2},
            "alpha_pattern": {first: 5.0, rf".*\.1\..*{last}": 0.5},
            "use_rslora": True,
        },
        "embedding": {"target_modules": [first, embedding]},
        "head": {"target_modules": [first, head]},
        "embedding and head": {"target_modules": [embedding, head]},
        "whole": {"target_modules": [first], "modules_to_save": [head]},
        "tied factors": {"target_modules": [first, embedding], "ensure_weight_tying": True},
        "tied whole": {
            "target_modules": [first],
            "modules_to_save": [embedding],
            "ensure_weight_tying": True,
        },
        "one layer": {"target_modules": [first, last], "layers_to_transform": [1]},
        "excluded": {"target_modules": [first, last], "exclude_modules": [last]},
        "orthogonal": {
            "target_modules": [first],
            "init_lora_weights": "orthogonal",
            "r": 4,
        },
        "tied head": {"target_modules": [first, head], "ensure_weight_tying": True},
        "whole both": {"target_modules": [first], "modules_to_save": [embedding, head]},
        "gaussian": {"target_modules": [first, last], "init_lora_weights": "gaussian"},
        "layers by pattern": {
            "target_modules": [first],
            "layers_to_transform": 1,
            "layers_pattern": ["layers", "h"],
        },
        "excluded by regex": {"target_modules": "all-linear", "exclude_modules": r".*\.0\..*"},
        "embedding of another rank": {
            "target_modules": [first, embedding],
            "rank_pattern": {embedding: 2},
            "alpha_pattern": {embedding: 3.0},
        },
        "full names": {
            "target_modules": [n for n, _ in family(name).named_modules() if n.endswith(first)]
        },
        "activated": {"target_modules": [first], "alora_invocation_tokens": [1]},
        "dora": {"target_modules": [first], "use_dora": True},
        "tokens": {"target_modules": [first], "trainable_token_indices": [1, 3]},
        "bias": {"target_modules": [first], "bias": "lora_only"},
        "factor bias": {"target_modules": [first], "lora_bias": True},
        "replicated": {"target_modules": [first], "layer_replication": [[0, 2], [1, 2]]},
        "parameters": {"target_parameters": [f"{first}.weight"]},
        "pissa": {"target_modules": [first], "init_lora_weights": "pissa"},
        "olora": {"target_modules": [first], "init_lora_weights": "olora"},
    }
    return {"r": 3, "lora_alpha": 6.0, "task_type": "CAUSAL_LM"} | given[case]


REFUSED = {
    "activated": "alora_invocation_tokens",
    "dora": "use_dora",
    "tokens": "trainable_token_indices",
    "bias": "bias",
    "factor bias": "lora_bias",
    "replicated": "layer_replication",
    "parameters": "target_parameters",
    "pissa": "init_lora_weights",
    "olora": "init_lora_weights",
}
"""Case → the setting that is refused by name."""
HALF = {
    ("qwen3 moe", "excluded by regex"): "target_parameters",
    ("qwen3 moe", "all-linear"): "target_parameters",
    ("gpt2", "tied head"): "factors of lm_head.*does not name it",
    ("bloom", "tied head"): "factors of lm_head.*does not name it",
}
"""Cases that PEFT makes into more than it was asked for, or reads back in part; refused by name."""
CASES = (
    *("plain", "regex", "all-linear", "patterns", "embedding", "head", "embedding and head"),
    *("whole", "whole both", "tied factors", "tied whole", "tied head", "one layer", "excluded"),
    *("orthogonal", "gaussian", "layers by pattern", "excluded by regex", "full names"),
    *("embedding of another rank", *REFUSED),
)
SMALL = {
    "llama": ("patterns", "embedding and head", "whole", *REFUSED),
    "llama tied": ("head", "embedding and head", "tied factors", "tied whole", "tied head"),
    "gpt2": ("all-linear", "patterns", "embedding and head", "tied head"),
    "opt": ("all-linear", "tied whole"),
    "qwen2": ("one layer", "tied factors"),
    "gemma2": ("excluded", "embedding"),
    "neox": ("regex", "embedding of another rank"),
    "phi3": ("all-linear", "orthogonal"),
    "qwen3 moe": ("all-linear",),
    "bloom": ("plain", "tied whole"),
}
"""Family → the cases of the default run; the others are slow by their number."""


def saved(name: str, case: str, folder: Path, seed: int) -> Path:
    """A random adapter of a case, as PEFT makes and saves it; a tie is kept in memory."""
    torch.manual_seed(seed)
    net = get_peft_model(copy.deepcopy(family(name)), LoraConfig(**settings(name, case)))
    for parameter in net.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    net.save_pretrained(folder)
    return folder


def effect(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """What a folder adds to each weight of its base, by PEFT."""
    net = copy.deepcopy(family(name))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    after = PeftModel.from_pretrained(net, str(folder)).merge_and_unload().state_dict()
    return {key: after[key].double() - before[key].double() for key in before}


def grid(*, small: bool) -> list:
    """Pairs of family and case, of the default run or of the others."""
    return [
        pytest.param(name, case, id=f"{name}-{case}", marks=() if small else pytest.mark.slow)
        for name in FAMILIES
        for case in CASES
        if (case in SMALL[name]) == small
    ]


@pytest.mark.parametrize(("name", "case"), [*grid(small=True), *grid(small=False)])
def test_merge_is_the_mean_of_what_peft_adds_or_is_refused(name, case, tmp_path):
    """Oracle: Σ p_i ΔW_i by PEFT's merged weights; what factors cannot say is refused by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own: tied weights, saved embeddings, fan-in
        try:
            seeds = (1,) if case in REFUSED else (1, 2)
            two = [saved(name, case, tmp_path / str(seed), seed) for seed in seeds]
        except ValueError as error:
            pytest.skip(f"PEFT does not make it: {error}")
        if said := HALF.get((name, case)):
            with pytest.raises(ModelError, match=said):
                open_adapter(two[0])
            return
        if case in REFUSED:
            with pytest.raises(ModelError, match=REFUSED[case]):
                merge_folders(two, tmp_path / "out", rule="stack")
            return
        told = merge_folders(two, tmp_path / "out", rule="stack", weights=(3.0, 1.0))
        one, other = (effect(name, folder) for folder in two)
        found = effect(name, tmp_path / "out")
    wanted = {key: 0.75 * one[key] + 0.25 * other[key] for key in one}
    size = torch.stack([value.norm() for value in wanted.values()]).norm()
    assert size > 0.1  # entries of about 0.1
    for key, value in wanted.items():
        distance = float((found[key] - value).norm())
        assert distance <= 1e-6 * max(float(size), 1.0), (key, distance, told)  # fp32 weights
    check_comparison(two, one, other)


def check_comparison(two, one, other) -> None:
    """Hold norms and angles of ``diff`` in the blocks to what PEFT adds to the weights there."""
    compared = compare(*(open_adapter(folder).adapter for folder in two))
    for module, found in compared.modules.items():
        pair = [effects[f"{module}.weight"].flatten() for effects in (one, other)]
        if any(part.isdigit() for part in module.split(".")):
            norms = [float(update.norm()) for update in pair]
            assert found.norms == pytest.approx(norms, rel=1e-5)  # fp32 weights
            angle = float(torch.dot(*pair)) / (norms[0] * norms[1])
            assert math.cos(math.radians(found.angle)) == pytest.approx(angle, abs=1e-5)


def test_merge_of_unlike_folders_is_their_mean_and_reads_back(tmp_path):
    """Oracle, equivalence: folders of several cases and formats; the result alone is itself."""
    cases = ("patterns", "embedding", "head", "plain")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folders = [saved("llama", case, tmp_path / case, i) for i, case in enumerate(cases)]
        for folder, kind in zip(folders, (torch.bfloat16, torch.float16), strict=False):
            file = folder / "adapter_model.safetensors"
            save_file({key: v.to(kind) for key, v in load_file(file).items()}, file)
        merge_folders(folders, tmp_path / "out", rule="stack")
        merge_folders([tmp_path / "out"], tmp_path / "again", rule="stack")
        merge_folders([tmp_path / "out"], tmp_path / "svd", rule="core_svd")
        effects = [effect("llama", folder) for folder in folders]
        found = [effect("llama", tmp_path / word) for word in ("out", "again", "svd")]
    embedding = "model.embed_tokens.weight"  # the copy in bfloat16 is rounded: PEFT adds that too
    for key in effects[0].keys() - {embedding}:
        wanted = sum(one[key] for one in effects) / len(effects)
        for one in found:
            torch.testing.assert_close(one[key], wanted, rtol=0, atol=2e-6)  # fp32 weights
    for one in found[1:]:
        torch.testing.assert_close(one[embedding], found[0][embedding], rtol=0, atol=2e-6)


def test_folder_of_a_run_merges_with_one_of_peft_on_conv1d(tmp_path):
    """Oracle: a run's folder leaves fan_in_fan_out to PEFT; with PEFT's own it is the mean."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        two = [saved("gpt2", "all-linear", tmp_path / str(seed), seed) for seed in (1, 2)]
        one = open_adapter(two[0]).adapter
        export_adapter(one, tmp_path / "run", base_name="", target_modules=one.modules)
        for folders in ([tmp_path / "run", two[1]], [two[1], tmp_path / "run"]):
            out = tmp_path / f"out-{folders[0].name}"
            merge_folders(folders, out, rule="stack")
            assert json.loads((out / "adapter_config.json").read_text())["fan_in_fan_out"] is True
            found, mine, theirs = (effect("gpt2", place) for place in (out, *folders))
            for key, value in found.items():
                wanted = (mine[key] + theirs[key]) / 2
                torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6)  # fp32 weights


def test_every_setting_that_is_not_read_is_refused_by_name():
    """Law: a setting of PEFT's that this reader does not know to be harmless is named."""
    plain = LoraConfig(peft_type="LORA").to_dict() | {"peft_type": "LORA"}
    check_plain_lora(plain, "here")
    for one in fields(LoraConfig):
        if one.name not in READ:
            with pytest.raises(ModelError, match=rf"here: expected {one.name} = nothing"):
                check_plain_lora(plain | {one.name: {"some": "value"}}, "here")
    for start in ("loftq", "pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "mica"):
        with pytest.raises(ModelError, match="init_lora_weights"):
            check_plain_lora(plain | {"init_lora_weights": start}, "here")
    for other in set(PeftType) - {PeftType.LORA}:
        with pytest.raises(ModelError, match=rf"peft_type = {re.escape(repr(other.value))}"):
            check_plain_lora(plain | {"peft_type": other.value}, "here")
