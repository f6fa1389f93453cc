"""Hold a frozen base with its one adapter; read and set the factors as an :class:`Adapter`.

ΔW of module m is s_m · B_m A_m, with A_m (rank, inputs) and B_m (outputs, rank) held in float32.

Reference:
    E. Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, section 4.1,
    https://arxiv.org/abs/2106.09685
"""

import hashlib
import math
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import IncompatibleAdapterError, ModelError, ProtocolError
from fedwinnow.curation.model.load_checks import positions
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.curation.tokens.chat_templates import ChatFormat
from fedwinnow.curation.tokens.tokenization import end_tokens

NAME = "default"
"""Name under which PEFT holds the one adapter."""
_PREFIX = "base_model.model."


@dataclass(slots=True)
class BatchBudget:
    """Token budget for batches of one kind of pass, as far as memory has shown."""

    most: int = 0
    """Most tokens, since memory ran out in a larger batch; 0: it never did."""
    grown: int = 0
    """Tokens that automatic sizing has reached; 0: it has not begun."""


@dataclass(kw_only=True, repr=False)
class LoadedModel:
    """A frozen base with one trainable adapter, and its tokenizer."""

    model: Any
    """A ``peft.PeftModel`` whose only adapter is called ``NAME``."""
    tokenizer: Any
    fingerprint: str
    """SHA-256 over the base's names, shapes, number formats and bytes."""
    device: torch.device
    sizes: dict[str, BatchBudget] = field(default_factory=dict)
    """Kind of pass → token budget of its batches (``client/measuring/batching.py``)."""

    @cached_property
    def chat(self) -> ChatFormat:
        """Return how the tokenizer's chat template writes an exchange."""
        return ChatFormat.of(self.tokenizer)

    @cached_property
    def positions(self) -> int:
        """Return how many positions the model has a table for; 0 where it has no such table."""
        return positions(self.model)

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """Return the end-of-turn tokens that follow a plain response."""
        return end_tokens(self.chat)

    @cached_property
    def vocabulary(self) -> str:
        """Return a SHA-256 of what turns texts into tokens; "" where the tokenizer hides it."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return ""
        special = sorted(self.chat.control_ids)
        given = (str(self.tokenizer.chat_template), self.chat.control.pattern, *map(str, special))
        text = "\0".join((backend.to_str(), str(self.end_tokens), *given))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def __repr__(self) -> str:
        ranks = sorted({layer.r[NAME] for _, layer in self.layers()})
        held = f"rank {', '.join(map(str, ranks))} in {len([*self.layers()])} modules"
        base = f"base {self.fingerprint[:12]} on {self.device}"
        return (
            f"LoadedModel({type(self.model).__name__}, {held if ranks else 'no adapter'}, {base})"
        )

    def layers(self) -> Iterator[tuple[str, Any]]:
        """Yield (module name in the base, PEFT's LoRA layer), in order of name."""
        yield from lora_layers(self.model)

    def layers_with(self, factors: Container[str]) -> dict[str, Any]:
        """Return those of :meth:`layers` whose factor ``NAME.A`` is among ``factors``."""
        return {name: layer for name, layer in self.layers() if f"{name}.A" in factors}

    def last_layers(self, number: int) -> dict[str, Any]:
        """Return LoRA layers of the last transformer layers, and of the head if it is adapted.

        Transformer layers are the members of the one outermost ``nn.ModuleList`` that holds
        adapted modules, in its order.

        Args:
            number: Number of transformer layers; 0 for all.

        Raises:
            ModelError: the model has fewer, or is no single stack of them.
        """
        layers = dict(self.layers())
        if number == 0:
            return layers
        modules = {name.removeprefix(_PREFIX): part for name, part in self.model.named_modules()}
        head = self.model.get_base_model().get_output_embeddings()
        places = {
            name: _place(name, modules) for name, layer in layers.items() if layer is not head
        }
        stacks = sorted({stack for stack, _ in places.values()})
        size = len(modules[stacks[0]]) if len(stacks) == 1 and stacks[0] else 0
        if number > size:
            what = f"{size} transformer layers" if size else "no single stack of adapted layers"
            message = (
                f"measuring.layers = {number}: the model has {what}; set it to at most {size}, or "
                "to 0 for all"
            )
            raise ModelError(message)
        return {
            name: layer
            for name, layer in layers.items()
            if layer is head or places[name][1] >= size - number
        }


def _place(name: str, modules: Mapping[str, Any]) -> tuple[str, int]:
    """Return the outermost module list that a module is in, and its place; "" for none."""
    parts = name.split(".")
    for i in range(1, len(parts)):
        stack = ".".join(parts[:i])
        if isinstance(modules.get(stack), nn.ModuleList):
            return stack, int(parts[i])
    return "", -1


def lora_layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (module name in the base, PEFT's LoRA layer) of a PEFT model, in order of name."""
    found = {
        name.removeprefix(_PREFIX): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "scaling")
    }
    yield from sorted(found.items())


def base_weights(model: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401 - PEFT has no types
    """Return the weights of the base under a LoRA adapter, by the names that the base gives them.

    PEFT calls the weight of an adapted module ``MODULE.base_layer.weight``; factors are left out.
    """
    adapted, found = {name for name, _ in lora_layers(model)}, {}
    for name, tensor in model.get_base_model().state_dict().items():
        parts = name.split(".")
        for i in range(1, len(parts)):
            if ".".join(parts[:i]) in adapted:
                kept = parts[i] == "base_layer"
                parts = [*parts[:i], *parts[i + 1 :]] if kept else []
                break
        if parts:
            found[".".join(parts)] = tensor
    return found


def fingerprint(base: torch.nn.Module) -> str:
    """Return the SHA-256 of all weights: names, shapes, number formats, bytes, sorted by name."""
    return fingerprint_of(base.state_dict())


def fingerprint_of(weights: Mapping[str, Any]) -> str:
    """Return the SHA-256 of :func:`fingerprint` over named weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}\n".encode())
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def get_adapter(loaded: LoadedModel) -> Adapter:
    """Return a copy of the model's current adapter, on the CPU in float32."""
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
    parts = (set(adapter.a), set(adapter.b), set(adapter.scales))
    if any(part != set(layers) for part in parts):
        differing = sorted(set().union(*(part ^ set(layers) for part in parts)))[:3]
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


def factor_gradients(loaded: LoadedModel, backward: Callable[[], None]) -> Adapter:
    """Run ``backward`` and return the gradients of both factors of every module as an adapter.

    Dropout is off meanwhile. Afterwards the model has its mode again, and no gradients.
    """
    model, training = loaded.model, loaded.model.training
    model.zero_grad(set_to_none=True)
    model.eval()
    try:
        backward()
        a: dict[str, torch.Tensor] = {}
        b: dict[str, torch.Tensor] = {}
        for name, layer in loaded.layers():
            for factors, found in ((layer.lora_A, a), (layer.lora_B, b)):
                weight = factors[NAME].weight
                gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
                found[name] = gradient.detach().float().cpu().clone()
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
    scales = {name: float(layer.scaling[NAME]) for name, layer in loaded.layers()}
    return Adapter(base=loaded.fingerprint, a=a, b=b, scales=scales)


@contextmanager
def freeze_factors(
    loaded: LoadedModel, factor: str, modules: frozenset[str] = frozenset()
) -> Iterator[None]:
    """Freeze one factor of every module, and both of some modules, inside the block.

    Args:
        loaded: The model.
        factor: Factor to freeze, "a", "b", or "" for neither.
        modules: Names of the modules whose factors are both frozen.

    Raises:
        ProtocolError: ``factor`` is another word.
    """
    if factor not in {"", "a", "b"}:
        message = f"frozen factor: expected 'a', 'b' or '', got {factor!r}; send the round again"
        raise ProtocolError(message)
    held = [
        factors[NAME]
        for name, layer in loaded.layers()
        for part, factors in (("a", layer.lora_A), ("b", layer.lora_B))
        if part == factor or name in modules
    ]
    for linear in held:
        linear.requires_grad_(requires_grad=False)
    try:
        yield
    finally:
        for linear in held:
            linear.requires_grad_(requires_grad=True)


def initial_adapter(loaded: LoadedModel, *, seed: int) -> Adapter:
    """Return θ_0, equal at every site: A uniform in ±1/√inputs, a generator per module; B zero."""
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
