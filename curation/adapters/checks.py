"""Check adapters: hash, finite values, shapes, compatible modules, sizes."""

import hashlib
import json
import math
from collections.abc import Mapping

import torch

from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import (
    EmptySelectionError,
    IncompatibleAdapterError,
    NonFiniteError,
    ProtocolError,
)

TOLERANCE = 2.0**-23
"""Directions with a singular value of at most this share of the largest count as zero: they are
below the rounding of float32 factors."""


def adapter_hash(adapter: Adapter) -> str:
    """Return the SHA-256 of names, shapes, dtypes, bytes and scales, in hexadecimal.

    Independent of the order of the mappings and of the memory layout of the tensors. The base is
    not part of it: peers compare fingerprints of bases separately.
    """
    digest = hashlib.sha256()
    for kind, factors in (("a", adapter.a), ("b", adapter.b)):
        for name in sorted(factors):
            factor = factors[name].detach().cpu().contiguous()
            head = [kind, name, list(factor.shape), str(factor.dtype)]
            digest.update(json.dumps(head).encode() + b"\n")
            digest.update(factor.flatten().view(torch.uint8).numpy().tobytes())
    scales = sorted((name, float(scale).hex()) for name, scale in adapter.scales.items())
    digest.update(json.dumps(scales).encode())
    return digest.hexdigest()


def check_adapter(adapter: Adapter, *, site: str = "") -> None:
    """Refuse an adapter unless it is a set of finite factor pairs of rank ≥ 1.

    Args:
        adapter: The adapter to check.
        site: Where it came from, for the message; ``""`` for an adapter of this process.

    Raises:
        IncompatibleAdapterError: no module; a factor or a scale is missing; a factor is no matrix
            of floating-point numbers; ranks disagree or are 0; a scale is not above 0.
        NonFiniteError: a factor or a scale is NaN or infinite.
    """
    who = f"adapter of site {site!r}" if site else "adapter"
    if not adapter.a:
        message = f"{who}: expected at least one module, got none; check adapter.targets"
        raise IncompatibleAdapterError(message)
    for name in sorted({*adapter.a, *adapter.b, *adapter.scales}):
        if not (name in adapter.a and name in adapter.b and name in adapter.scales):
            message = (
                f"{who}, module {name}: expected A, B and a scale, got only some of them; "
                "send the whole adapter"
            )
            raise IncompatibleAdapterError(message)
        _check_module(adapter, name, who)


def _check_module(adapter: Adapter, name: str, who: str) -> None:
    a, b, scale = adapter.a[name], adapter.b[name], adapter.scales[name]
    matrices = a.ndim == b.ndim == 2 and a.is_floating_point() and b.is_floating_point()  # noqa: PLR2004 - a matrix has two axes
    if not matrices or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        message = (
            f"{who}, module {name}: expected floating-point A (rank, inputs) and B (outputs, rank) "
            f"with rank at least 1, got A {tuple(a.shape)} {a.dtype} and B {tuple(b.shape)} "
            f"{b.dtype}; export the adapter anew"
        )
        raise IncompatibleAdapterError(message)
    for part, finite in (
        ("A", bool(torch.isfinite(a).all())),
        ("B", bool(torch.isfinite(b).all())),
        ("scale", math.isfinite(scale)),
    ):
        if not finite:
            message = (
                f"{who}, module {name}: expected finite numbers, got NaN or infinity in {part}; "
                "lower training.learning_rate or leave the site out"
            )
            raise NonFiniteError(message)
    if scale <= 0:
        message = (
            f"{who}, module {name}: expected a scale above 0, got {scale}; check adapter.alpha"
        )
        raise IncompatibleAdapterError(message)


def check_compatible(adapters: Mapping[str, Adapter], previous: Adapter) -> None:
    """Refuse adapters that do not change the same matrices of the same base as ``previous``.

    Ranks, scales and dtypes may differ; bases, module names, inputs and outputs may not.

    Args:
        adapters: Site → adapter; each is also checked by :func:`check_adapter`.
        previous: The adapter that the sites started from.

    Raises:
        IncompatibleAdapterError: naming the first site, by name, and module that differ.
        NonFiniteError: a factor or scale is NaN or infinite.
    """
    check_adapter(previous)
    for site in sorted(adapters):
        adapter = adapters[site]
        check_adapter(adapter, site=site)
        if adapter.base != previous.base:
            message = (
                f"adapter of site {site!r}: expected base {previous.base}, got {adapter.base}; "
                "load the same model.name and dtype at every site"
            )
            raise IncompatibleAdapterError(message)
        if adapter.modules != previous.modules:
            differing = sorted(set(adapter.modules) ^ set(previous.modules))
            message = (
                f"adapter of site {site!r}: expected {len(previous.modules)} modules, got "
                f"{len(adapter.modules)}, differing in {differing[0]}; use one adapter.targets"
            )
            raise IncompatibleAdapterError(message)
        for name in previous.modules:
            expected = (previous.b[name].shape[0], previous.a[name].shape[1])
            came = (adapter.b[name].shape[0], adapter.a[name].shape[1])
            if came != expected:
                message = (
                    f"adapter of site {site!r}, module {name}: expected outputs and inputs "
                    f"{expected}, got {came}; load the same model.name at every site"
                )
                raise IncompatibleAdapterError(message)


def normalise_weights(
    adapters: Mapping[str, object], weights: Mapping[str, float]
) -> dict[str, float]:
    """Normalise the weights of the sites that sent an adapter, in sorted order of name.

    Sites without a weight or with weight 0 are left out; weights of sites without an adapter are
    ignored.

    Raises:
        EmptySelectionError: no site with an adapter has a weight above 0.
        NonFiniteError: a weight is NaN or infinite.
        ProtocolError: a weight is negative.
    """
    used: dict[str, float] = {}
    for site in sorted(adapters):
        weight = float(weights.get(site, 0.0))
        if not math.isfinite(weight):
            message = f"weight of site {site!r}: expected a number, got {weight}; check [weighting]"
            raise NonFiniteError(message)
        if weight < 0:
            message = (
                f"weight of site {site!r}: expected at least 0, got {weight}; check [weighting]"
            )
            raise ProtocolError(message)
        if weight > 0:
            used[site] = weight
    if not used:
        message = (
            f"merging: expected an adapter with a weight above 0, got none among {len(adapters)} "
            "sites with an adapter; lower the threshold so that a site keeps samples"
        )
        raise EmptySelectionError(message)
    total = math.fsum(used.values())
    return {site: weight / total for site, weight in used.items()}


def adapter_bytes(adapter: Adapter) -> int:
    """Return the size of an adapter's factors in bytes."""
    factors = (*adapter.a.values(), *adapter.b.values())
    return sum(factor.numel() * factor.element_size() for factor in factors)
