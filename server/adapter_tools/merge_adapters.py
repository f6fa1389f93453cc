"""LoRA adapters of one base merged by any rule, without a run: in memory, or views of files.

Every rule sees what a federation's server would: the adapters, and a previous adapter that changes
nothing. That one has, in each module, A and the scale of the adapter with the largest rank there,
and B = 0. A module that an adapter lacks counts as a zero update of that adapter. All factors, and
so the result, have the one number format that holds those of every adapter exactly
(``torch.promote_types``: float32 where bfloat16 meets float16), whatever their order.
"""

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import TypeAlias

import torch

from fedwinnow.curation.adapters.checks import check_adapter
from fedwinnow.curation.adapters.module_names import check_common_modules
from fedwinnow.curation.adapters.peft_reader import LazyFactor
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import ConfigError, ModelError
from fedwinnow.strategies.interfaces.merging import Merged, Merging

Sizes: TypeAlias = Mapping[str, tuple[int, int, str]]
"""Module → outputs, inputs, and the adapter with the largest rank there (the first of them)."""


def merge_adapters(
    adapters: Mapping[str, Adapter], weights: Mapping[str, float], merging: Merging
) -> Merged:
    """Merge adapters that are in memory.

    Args:
        adapters: Name → adapter, at least one; ranks, scales and modules may differ.
        weights: Name → weight of each, at least 0 and not all 0; brought to sum 1.
        merging: The rule.

    Raises:
        ConfigError: there is no adapter, or weights are not those of the adapters.
        ModelError: adapters are of different bases, differ in a module's outputs or inputs, or one
            has no module in common with another.
        IncompatibleAdapterError: an adapter is not whole, or the rule cannot merge these.
        EmptySelectionError: all weights are 0.
        NonFiniteError: a factor or a weight is NaN or infinite.
        ProtocolError: a weight is negative.
    """
    if not adapters or set(weights) != set(adapters):
        message = (
            f"merge: expected adapters and a weight of each, got adapters {sorted(adapters)} and "
            f"weights of {sorted(weights)}; name the same"
        )
        raise ConfigError(message)
    for name, one in adapters.items():
        check_adapter(one, site=name)
    bases = {name: one.base for name, one in adapters.items()}
    if len(set(bases.values())) > 1:
        words = "; ".join(f"{name}: {base or 'not named'}" for name, base in bases.items())
        message = (
            f"merge: adapters are of different bases ({words}); merge adapters of one base, or "
            "load them with base= where it has two names"
        )
        raise ModelError(message)
    check_common_modules({name: one.modules for name, one in adapters.items()})
    shapes = {
        name: {m: (len(one.b[m]), len(one.a[m]), one.a[m].shape[1]) for m in one.modules}
        for name, one in adapters.items()
    }
    return merge_widened(adapters, weights, merging, sizes_of(shapes))


def merge_widened(
    adapters: Mapping[str, Adapter], weights: Mapping[str, float], merging: Merging, sizes: Sizes
) -> Merged:
    """Merge adapters of one base after giving each the modules that it lacks.

    Raises:
        RunError: the rule cannot merge these.
    """
    factors = (f for one in adapters.values() for m in one.a for f in (one.a[m], one.b[m]))
    kind = common_format(factors)
    full = {name: widened(one, sizes, kind) for name, one in adapters.items()}
    return merging(full, weights, unchanged(full, sizes))


def common_format(arrays: Iterable[torch.Tensor]) -> torch.dtype:
    """Return the narrowest number format that holds the values of all arrays exactly."""
    return reduce(torch.promote_types, (one.dtype for one in arrays))


def sizes_of(shapes: Mapping[str, Mapping[str, tuple[int, int, int]]]) -> Sizes:
    """Return the sizes of all modules.

    Args:
        shapes: Adapter → module → outputs, rank, inputs.

    Raises:
        ModelError: adapters differ in a module's outputs or inputs.
    """
    sizes: dict[str, tuple[int, int, str]] = {}
    for name, own in shapes.items():
        for module, (outputs, rank, inputs) in own.items():
            known = sizes.setdefault(module, (outputs, inputs, name))
            if known[:2] != (outputs, inputs):
                message = (
                    f"{name}, module {module}: expected outputs and inputs {known[:2]} as in "
                    f"{known[2]}, got {(outputs, inputs)}; merge adapters of one base"
                )
                raise ModelError(message)
            if rank > shapes[known[2]][module][1]:
                sizes[module] = (outputs, inputs, name)
    return sizes


def widened(own: Adapter, sizes: Sizes, kind: torch.dtype) -> Adapter:
    """Return an adapter in ``kind``, with a zero pair of rank 1 in each module that it lacks."""
    modules = sorted(sizes)

    def a(m: str) -> torch.Tensor:
        return own.a[m].to(kind) if m in own.a else torch.zeros(1, sizes[m][1], dtype=kind)

    def b(m: str) -> torch.Tensor:
        return own.b[m].to(kind) if m in own.b else torch.zeros(sizes[m][0], 1, dtype=kind)

    return Adapter(
        base=own.base,
        a=LazyFactor(modules, a),
        b=LazyFactor(modules, b),
        scales={module: own.scales.get(module, 1.0) for module in modules},
    )


def unchanged(adapters: Mapping[str, Adapter], sizes: Sizes) -> Adapter:
    """Return what a rule takes for the adapter before training; see the head of this file."""
    largest = {module: adapters[name] for module, (_, _, name) in sizes.items()}
    modules = sorted(sizes)
    return Adapter(
        base=next(iter(adapters.values())).base,
        a=LazyFactor(modules, lambda module: largest[module].a[module]),
        b=LazyFactor(modules, lambda module: torch.zeros_like(largest[module].b[module])),
        scales={module: largest[module].scales[module] for module in modules},
    )
