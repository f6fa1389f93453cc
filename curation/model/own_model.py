"""Refuse a model of the caller's own that cannot be measured: no causal model, no plain LoRA."""

from typing import Any

from fedwinnow.curation.adapters.peft_config import check_plain_lora
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.model.load_checks import check_embeddings
from fedwinnow.curation.model.lora_model import NAME, lora_layers


def check_causal(base: Any, tokenizer: Any) -> None:  # noqa: ANN401 - transformers' classes share no typed base
    """Refuse a model that does not predict the next token, or a tokenizer of another model.

    Raises:
        ModelError: naming what it is and what to give.
    """
    config = base.config
    if getattr(config, "is_encoder_decoder", False) or not base.can_generate():
        message = (
            f"load_model: expected a causal language model, got {type(base).__name__}; load it "
            "with AutoModelForCausalLM"
        )
        raise ModelError(message)
    check_embeddings(base, tokenizer, f"load_model: {type(base).__name__}")


def check_bare(base: Any) -> None:  # noqa: ANN401 - see check_causal
    """Refuse a model that holds LoRA layers already and is no PeftModel.

    Raises:
        ModelError: it does.
    """
    if names := [name for name, _ in lora_layers(base)]:
        message = (
            f"load_model: {type(base).__name__} holds a LoRA layer in {names[0]} already; give the "
            "PeftModel that it belongs to, or the base without (PeftModel.unload)"
        )
        raise ModelError(message)


def check_lora(model: Any) -> None:  # noqa: ANN401 - PEFT has no types
    """Refuse a PeftModel whose one adapter is not plain, active LoRA of linear layers.

    Dropout is no reason: samples are measured in evaluation mode, in which there is none.

    Raises:
        ModelError: several adapters, or one with another name than PEFT's own ("default"); another
            method than LoRA, or a variant of it (DoRA, biases, whole modules, a changed base);
            another task; adapted layers that are not linear, merged or disabled.
    """
    names = sorted(model.peft_config)
    if names != [NAME]:
        message = (
            f"load_model: expected one adapter called {NAME!r}, got {', '.join(map(repr, names))}; "
            "load it alone, by PeftModel.from_pretrained(base, folder)"
        )
        raise ModelError(message)
    config = model.peft_config[NAME].to_dict()
    check_plain_lora(config, "load_model: the model's adapter")
    task = config.get("task_type")
    if task not in {None, "CAUSAL_LM"}:
        message = (
            f"load_model: the model's adapter: expected task_type = 'CAUSAL_LM'; got {task!s}; "
            "train an adapter of a causal language model"
        )
        raise ModelError(message)
    if saved := config.get("modules_to_save"):
        message = (
            "load_model: the model's adapter: expected LoRA factors only; got modules_to_save = "
            f"{sorted(saved)}; train without"
        )
        raise ModelError(message)
    layers = dict(lora_layers(model))
    wrong = next(((name, why) for name, layer in layers.items() if (why := _unfit(layer))), None)
    if wrong or not layers:
        name, why = wrong or ("", "")
        what = f"{name}: {why}" if wrong else "the model has no LoRA layer; adapt linear layers"
        message = f"load_model: {what}"
        raise ModelError(message)


def _unfit(layer: Any) -> str:  # noqa: ANN401 - PEFT has no types
    """Why an adapted layer cannot be read, with the cure; "" where it can."""
    if NAME not in layer.lora_A:
        return "its adapter has no linear factors; adapt linear layers only"
    if layer.merged:
        return "the adapter is merged into the base; unmerge it first (unmerge_adapter)"
    if layer.disable_adapters or layer.active_adapters != [NAME]:
        return f"the adapter is not active; enable it (set_adapter({NAME!r}))"
    return ""
