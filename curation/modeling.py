"""The one door to transformers and PEFT: load a base, attach an adapter, encode, generate.

Everything above this file speaks of :class:`LoadedModel`, :class:`Encoding` and ``Adapter``.

Reference:
    E. Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, section 4.1,
    https://arxiv.org/abs/2106.09685
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Int32
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer

from fedwinnow.curation.config import AdapterSection, ModelSection
from fedwinnow.curation.errors import IncompatibleAdapterError, ModelError
from fedwinnow.curation.nouns import Adapter, Sample
from fedwinnow.curation.seeds import derive_seed

logger = logging.getLogger(__name__)

NAME = "default"
"""Name under which PEFT holds the one adapter."""
_PREFIX = "base_model.model."
_MARK = "fedwinnow-response"


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """One sample as tokens: prompt, response body, end of turn."""

    tokens: Int32[np.ndarray, " tokens"]
    response_start: int
    body_end: int
    """Body: ``tokens[response_start:body_end]``; what follows is the end-of-turn token, absent
    where it was cut away."""

    @property
    def has_target(self) -> bool:
        """Whether a body token is there to compute a loss on."""
        return self.body_end > self.response_start


@dataclass(kw_only=True)
class LoadedModel:
    """A frozen base with one trainable adapter, and its tokenizer."""

    model: Any
    """A ``peft.PeftModel`` whose only adapter is called "default"."""
    tokenizer: Any
    fingerprint: str
    """SHA-256 over the base's names, shapes, number formats and bytes."""
    device: torch.device

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """End-of-turn tokens that follow every response."""
        return end_tokens(self.tokenizer)

    def layers(self) -> Iterator[tuple[str, Any]]:
        """(module name in the base, PEFT's LoRA layer), in order of name."""
        found = {
            name.removeprefix(_PREFIX): module
            for name, module in self.model.named_modules()
            if isinstance(module, LoraLayer)
        }
        yield from sorted(found.items())


def load_model(model: ModelSection, adapter: AdapterSection, *, seed: int) -> LoadedModel:
    """Load a base model and attach a seeded LoRA adapter.

    A local folder never makes a network call.

    Raises:
        ModelError: the model is not there or cannot be loaded, an adapter target is no linear layer
            of it, or 4-bit weights are asked for without CUDA and bitsandbytes.
    """
    tokenizer = load_tokenizer(model)
    base = _load_base(model)
    linear = sorted(
        {name.rsplit(".", 1)[-1] for name, part in base.named_modules() if _is_linear(part)}
    )
    absent = [target for target in adapter.targets if target not in linear]
    if absent:
        message = (
            f"adapter.targets: {', '.join(absent)} are no linear layers of {model.name!r}; "
            f"it has {', '.join(linear)}"
        )
        raise ModelError(message)
    for parameter in base.parameters():
        parameter.requires_grad_(requires_grad=False)
    found = fingerprint(base)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # PEFT divides it, a float serves
        lora_dropout=adapter.dropout,
        use_rslora=adapter.rslora,
        target_modules=list(adapter.targets),
        task_type="CAUSAL_LM",
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wrapped = get_peft_model(base, config)
    if model.quantization == "none":
        wrapped.to(device)
    loaded = LoadedModel(model=wrapped, tokenizer=tokenizer, fingerprint=found, device=device)
    for _, layer in loaded.layers():
        for factors in (layer.lora_A, layer.lora_B):
            factors[NAME].weight.data = factors[NAME].weight.data.float()
    set_adapter(loaded, initial_adapter(loaded, seed=seed))
    wrapped.eval()
    logger.info("loaded %s on %s, base %s", model.name, device, found[:12])
    return loaded


def load_tokenizer(model: ModelSection) -> Any:  # noqa: ANN401 - transformers' tokenizers share no typed base
    """The model's tokenizer.

    Raises:
        ModelError: it is not there or cannot be loaded.
    """
    if not model.name:
        message = "model.name is empty; give a hub name or the folder of a model"
        raise ModelError(message)
    try:
        with _quiet():
            return transformers.AutoTokenizer.from_pretrained(model.name, **_source(model))
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise _not_loaded(model, "tokenizer", error) from error


def fingerprint(base: torch.nn.Module) -> str:
    """SHA-256 over names, shapes, number formats and bytes of all weights, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(base.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}\n".encode())
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def encode(
    loaded: LoadedModel, sample: Sample, *, max_length: int, system_prompt: str = ""
) -> Encoding:
    """Tokens of a sample under the chat template; see :func:`encode_sample`."""
    return encode_sample(
        loaded.tokenizer,
        sample,
        max_length=max_length,
        system_prompt=system_prompt,
        end=loaded.end_tokens,
    )


def encode_sample(
    tokenizer: Any,  # noqa: ANN401 - transformers' tokenizers share no typed base
    sample: Sample,
    *,
    max_length: int,
    system_prompt: str = "",
    end: tuple[int, ...] | None = None,
) -> Encoding:
    """Prompt, body and end are tokenised apart, so the body is the same under any prompt.

    A sample that is too long loses the front of its prompt first, down to a quarter of
    ``max_length``; then the end of its response, and with it the end-of-turn token. A response
    with any token keeps at least one.

    Args:
        tokenizer: Any tokenizer of transformers; without a chat template, a line break parts
            prompt and response.
        sample: What to encode.
        max_length: Longest result in tokens, at least 8.
        system_prompt: System message before everything; "" for none.
        end: End-of-turn tokens, where the caller knows them.
    """
    end = end_tokens(tokenizer) if end is None else end
    prompt = _tokens(tokenizer, _prompt_text(tokenizer, sample, system_prompt))
    body = _tokens(tokenizer, sample.response)
    closing = list(end)
    if len(prompt) + len(body) + len(closing) > max_length:
        least = min(len(prompt), max(1, max_length // 4))
        room = max(least, max_length - len(body) - len(closing))
        prompt = prompt[-min(room, len(prompt)) :]
        if len(prompt) + len(body) + len(closing) > max_length:
            body, closing = body[: max_length - len(prompt)], []
    tokens = np.array([*prompt, *body, *closing], dtype=np.int32)
    return Encoding(tokens=tokens, response_start=len(prompt), body_end=len(prompt) + len(body))


def end_tokens(tokenizer: Any) -> tuple[int, ...]:  # noqa: ANN401 - see encode_sample
    """What follows a response: the template's text up to its first special token, or the EOS."""
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        tokens = _tokens(tokenizer, text.rsplit(_MARK, 1)[-1])
        special = set(tokenizer.all_special_ids)
        first = next((i for i, token in enumerate(tokens) if token in special), None)
        if first is not None:
            return tuple(tokens[: first + 1])
    return () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)


def get_adapter(loaded: LoadedModel) -> Adapter:
    """A copy of the adapter that the model holds now, on the CPU in float32."""
    a, b, scales = {}, {}, {}
    for name, layer in loaded.layers():
        a[name] = layer.lora_A[NAME].weight.detach().float().cpu().clone()
        b[name] = layer.lora_B[NAME].weight.detach().float().cpu().clone()
        scales[name] = float(layer.scaling[NAME])
    return Adapter(base=loaded.fingerprint, a=a, b=b, scales=scales)


def set_adapter(loaded: LoadedModel, adapter: Adapter) -> None:
    """Put an adapter into the model, exactly; its ranks may differ from the model's.

    Raises:
        IncompatibleAdapterError: base, modules or outer shapes differ; the model is unchanged.
    """
    layers = dict(loaded.layers())
    if adapter.base != loaded.fingerprint:
        message = (
            f"adapter was made for base {adapter.base[:12]}, the model is "
            f"{loaded.fingerprint[:12]}; load the base that the federation agreed on"
        )
        raise IncompatibleAdapterError(message)
    if set(layers) != set(adapter.a) or set(layers) != set(adapter.b):
        differing = sorted(set(layers) ^ set(adapter.a))[:3]
        message = (
            f"adapter has other modules than the model ({', '.join(differing)}, …); use the same "
            "adapter.targets"
        )
        raise IncompatibleAdapterError(message)
    for name, layer in layers.items():
        wide, tall = layer.in_features, layer.out_features
        rank = adapter.a[name].shape[0]
        if adapter.a[name].shape != (rank, wide) or adapter.b[name].shape != (tall, rank):
            shapes = f"{tuple(adapter.a[name].shape)} and {tuple(adapter.b[name].shape)}"
            message = (
                f"module {name}: factors must be (rank, {wide}) and ({tall}, rank), not {shapes}"
            )
            raise IncompatibleAdapterError(message)
    for name, layer in layers.items():
        rank = adapter.a[name].shape[0]
        for factors, values in ((layer.lora_A, adapter.a[name]), (layer.lora_B, adapter.b[name])):
            linear = factors[NAME]
            if linear.weight.shape == values.shape:
                with torch.no_grad():
                    linear.weight.copy_(values)
            else:
                linear.weight = torch.nn.Parameter(
                    values.to(linear.weight, copy=True), requires_grad=linear.weight.requires_grad
                )
                linear.out_features, linear.in_features = values.shape
        layer.r[NAME] = rank
        layer.scaling[NAME] = adapter.scales[name]
        layer.lora_alpha[NAME] = adapter.scales[name] * rank


def initial_adapter(loaded: LoadedModel, *, seed: int) -> Adapter:
    """θ_0: A uniform in ±1/√inputs by a generator per module, B zero; the same at every site."""
    a, b, scales = {}, {}, {}
    config = loaded.model.peft_config[NAME]
    for name, layer in loaded.layers():
        generator = torch.Generator().manual_seed(derive_seed(seed, "factor A", name))
        bound = 1.0 / math.sqrt(layer.in_features)
        rank = config.r
        a[name] = (torch.rand(rank, layer.in_features, generator=generator) * 2 - 1) * bound
        b[name] = torch.zeros(layer.out_features, rank)
        root = math.sqrt(rank) if config.use_rslora else rank
        scales[name] = float(config.lora_alpha / root)
    return Adapter(base=loaded.fingerprint, a=a, b=b, scales=scales)


def generate(
    loaded: LoadedModel, samples: Sequence[Sample], *, max_new_tokens: int, system_prompt: str = ""
) -> tuple[str, ...]:
    """Greedy answers to the samples' prompts, one after the other."""
    tokenizer, answers = loaded.tokenizer, []
    stop = loaded.end_tokens[-1] if loaded.end_tokens else None
    config = transformers.GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=stop if stop is not None else 0,
    )
    training = loaded.model.training
    loaded.model.eval()
    try:
        for sample in samples:
            text = _prompt_text(tokenizer, sample, system_prompt)
            tokens = torch.tensor([_tokens(tokenizer, text)], device=loaded.device)
            with torch.no_grad():
                made = loaded.model.generate(
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    generation_config=config,
                )
            new = made[0, tokens.shape[1] :]
            answers.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    finally:
        loaded.model.train(training)
    return tuple(answers)


def _load_base(model: ModelSection) -> Any:  # noqa: ANN401 - any causal language model
    options: dict[str, Any] = {"dtype": getattr(torch, model.dtype)}
    if model.quantization == "4bit":
        if not torch.cuda.is_available():
            message = "model.quantization = '4bit' needs CUDA, and none is here; set it to 'none'"
            raise ModelError(message)
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    try:
        with _quiet():
            base = transformers.AutoModelForCausalLM.from_pretrained(
                model.name, **_source(model), **options
            )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise _not_loaded(model, "model", error) from error
    base.config.use_cache = False
    return base


def _source(model: ModelSection) -> dict[str, Any]:
    """Where to read from: a local folder never asks the hub, and no code comes with a model."""
    source: dict[str, Any] = {"trust_remote_code": False}
    if Path(model.name).exists():
        source["local_files_only"] = True
    if model.gguf_file:
        source["gguf_file"] = model.gguf_file
    return source


def _not_loaded(model: ModelSection, part: str, error: Exception) -> ModelError:
    first = str(error).strip().split("\n")[0]
    place = f"{model.name!r}" + (f" ({model.gguf_file})" if model.gguf_file else "")
    return ModelError(
        f"model.name: the {part} of {place} cannot be loaded ({type(error).__name__}: {first}); "
        "give a local folder, or a hub name where there is internet"
    )


class _quiet:  # noqa: N801 - used as a word
    """Hides transformers' progress bars for a while."""

    def __enter__(self) -> None:
        self.shown = transformers.utils.logging.is_progress_bar_enabled()
        transformers.utils.logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        if self.shown:
            transformers.utils.logging.enable_progress_bar()


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or "Linear" in type(module).__name__


def _prompt_text(tokenizer: Any, sample: Sample, system_prompt: str) -> str:  # noqa: ANN401 - see encode_sample
    turns = [{"role": "system", "content": system_prompt}] if system_prompt else []
    turns += [{"role": role, "content": content} for role, content in sample.history]
    turns.append({"role": "user", "content": sample.prompt})
    if tokenizer.chat_template:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    return "\n".join(turn["content"] for turn in turns) + "\n"


def _tokens(tokenizer: Any, text: str) -> list[int]:  # noqa: ANN401 - see encode_sample
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
