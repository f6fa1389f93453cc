"""Keep a federation's lasting change of the base as factors beside its weights.

Some merging rules add what an adapter of fixed rank cannot hold to the base: W ← W + ΔW_c. Here
ΔW_c stays an :class:`Adapter`, applied in the forward pass of every layer. So the change is exact
also where adding it to the weights would round (bfloat16) or is impossible (4 bits), every site
holds the same one, and it can be taken off again. The federation's result at the end of a round is
the sum of change and adapter, which is again an adapter: ordinary tools load it.

Reference:
    Z. Wang et al., FLoRA, NeurIPS 2024, https://arxiv.org/abs/2409.05976; R. Singhal et al.,
    FedEx-LoRA, ACL 2025, https://arxiv.org/abs/2410.09432
    Differs from the papers: they add to the weights.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters import checks
from fedwinnow.curation.adapters.algebra import balance_factors
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import IncompatibleAdapterError
from fedwinnow.curation.model.lora_model import LoadedModel


def changed_base_hash(base: str, change: Adapter | None) -> str:
    """Return the fingerprint of a base with a change: SHA-256 over the base's and the change's."""
    if change is None:
        return base
    return hashlib.sha256(f"{base}+{checks.adapter_hash(change)}".encode()).hexdigest()


def add_change(before: Adapter | None, more: Adapter) -> Adapter:
    """Add up two changes of one base, at the smallest ranks that hold the sum.

    Raises:
        IncompatibleAdapterError: they are of different bases, or shapes differ.
    """
    if before is None:
        return more
    summed = _sum(before, more)
    a, b = {}, {}
    for module in summed.modules:
        spectrum = maths.decompose(maths.delta(summed, module))
        used = max(1, int((spectrum.values > checks.TOLERANCE * spectrum.values[0]).sum()))
        a[module], b[module] = balance_factors(spectrum, summed, module, slice(used))
    small = replace(summed, a=a, b=b)
    checks.check_adapter(small)
    return small


def _sum(one: Adapter, other: Adapter) -> Adapter:
    """Add two adapters, factors stacked under the second's scale; a module may be in one alone."""
    if one.base != other.base:
        message = f"base {one.base[:12]} and {other.base[:12]} differ; send changes of one run"
        raise IncompatibleAdapterError(message)
    a, b, scales = dict(one.a), dict(one.b), dict(one.scales)
    for module in other.modules:
        if module not in one.a:
            a[module], b[module] = other.a[module], other.b[module]
            scales[module] = other.scales[module]
            continue
        shape = (one.b[module].shape[0], one.a[module].shape[1])
        came = (other.b[module].shape[0], other.a[module].shape[1])
        if shape != came:
            message = f"module {module}: expected outputs and inputs {shape}, got {came}"
            raise IncompatibleAdapterError(message)
        scale = scales[module] = other.scales[module]
        whole = maths.sum_products([maths.delta(one, module), maths.delta(other, module)])
        a[module] = whole.right.to(other.a[module].dtype)
        b[module] = (whole.left / scale).to(other.b[module].dtype)
    return Adapter(base=one.base, a=a, b=b, scales=scales)


def effective_adapter(adapter: Adapter, change: Adapter | None) -> Adapter:
    """Return change and adapter as one adapter of the unchanged base: their factors, stacked.

    Raises:
        IncompatibleAdapterError: the adapter was made for another change, or shapes differ.
    """
    return adapter if change is None else _sum(change, _of_base(adapter, change))


def _of_base(adapter: Adapter, change: Adapter) -> Adapter:
    """Return the adapter as one of the unchanged base."""
    expected = changed_base_hash(change.base, change)
    if adapter.base != expected:
        message = (
            f"adapter was made for base {adapter.base[:12]}, base and change together are "
            f"{expected[:12]}; send adapter and change of the same round"
        )
        raise IncompatibleAdapterError(message)
    return replace(adapter, base=change.base)


@contextmanager
def apply_base_change(loaded: LoadedModel, change: Adapter | None) -> Iterator[None]:
    """Apply a change of the base to the model inside the block; take it off after it.

    Gradients flow through the change; it is not trained.

    Raises:
        IncompatibleAdapterError: the change is for another base or other matrices.
    """
    if change is None:
        yield
        return
    layers = dict(loaded.layers())
    strange = sorted(set(change.modules) - set(layers))
    if change.base != loaded.fingerprint or strange:
        message = (
            f"change is for base {change.base[:12]}, the model is {loaded.fingerprint[:12]}; "
            f"modules without an adapter: {', '.join(strange) or 'none'}; send this run's change"
        )
        raise IncompatibleAdapterError(message)
    with ExitStack() as stack:
        for name in change.modules:
            layer = layers[name]
            hook = layer.register_forward_hook(_adding(change, name, layer))
            stack.callback(hook.remove)
        yield


def _adding(change: Adapter, name: str, layer: torch.nn.Module):  # type: ignore[no-untyped-def]  # noqa: ANN202 - torch types hooks loosely
    device = next(layer.parameters()).device
    a = change.a[name].to(device, torch.float32)
    b = (change.scales[name] * change.b[name]).to(device, torch.float32)

    def add(_: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        update = inputs[0].to(torch.float32) @ a.T @ b.T
        return output + update.to(output.dtype)

    return add
