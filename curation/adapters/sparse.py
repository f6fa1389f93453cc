"""Check sparse differences and compute their weighted sum.

The sum of sparse differences has the union of their supports; entries that several hold add up:

    values of Σ w_i δ_i at place k  =  Σ_i w_i δ_i[k],   in float64.

Source: addition of sparse vectors; composition of sparse fine-tunings by addition: A. Ansell et
al., Composable Sparse Fine-Tuning for Cross-Lingual Transfer (LT-SFT), ACL 2022,
https://arxiv.org/abs/2110.07560.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from fedwinnow.curation.datatypes import Adapter, SparseAdapter
from fedwinnow.curation.errors import IncompatibleAdapterError, NonFiniteError


def check_sparse(adapter: SparseAdapter | Adapter, *, site: str = "") -> SparseAdapter:
    """Refuse all but a sparse difference of finite values at ascending places in its shapes.

    Args:
        adapter: The adapter to check; it may have no entry.
        site: Where it came from, for the message; ``""`` for an adapter of this process.

    Returns:
        The same adapter.

    Raises:
        IncompatibleAdapterError: LoRA factors; a part of a parameter is missing; indices are no
            strictly ascending int64 places inside the shape; values do not match them.
        NonFiniteError: a value is NaN or infinite.
    """
    who = f"adapter of site {site!r}" if site else "adapter"
    if not isinstance(adapter, SparseAdapter):
        message = (
            f"{who}: expected a sparse difference (indices and values), got LoRA factors; choose "
            "another merging.name, such as 'core_svd'"
        )
        raise IncompatibleAdapterError(message)
    for name in sorted({*adapter.indices, *adapter.values, *adapter.shapes}):
        if not (name in adapter.indices and name in adapter.values and name in adapter.shapes):
            message = (
                f"{who}, parameter {name}: expected indices, values and a shape, got only some of "
                "them; send the whole difference"
            )
            raise IncompatibleAdapterError(message)
        _check_parameter(adapter, name, who)
    return adapter


def _check_parameter(adapter: SparseAdapter, name: str, who: str) -> None:
    places, values, shape = adapter.indices[name], adapter.values[name], adapter.shapes[name]
    size = math.prod(shape)
    plain = places.ndim == values.ndim == 1 and values.is_floating_point()
    if not plain or places.dtype != torch.int64 or places.shape != values.shape:
        message = (
            f"{who}, parameter {name}: expected int64 indices and as many floating-point values, "
            f"got indices {tuple(places.shape)} {places.dtype} and values {tuple(values.shape)} "
            f"{values.dtype}; export the difference anew"
        )
        raise IncompatibleAdapterError(message)
    if len(places) and not (
        bool((places.diff() > 0).all()) and int(places[0]) >= 0 and int(places[-1]) < size
    ):
        message = (
            f"{who}, parameter {name}: expected strictly ascending indices from 0 to {size - 1} "
            f"(shape {tuple(shape)}), got {int(places.min())} to {int(places.max())}, or not in "
            "order; sort them and add up duplicates"
        )
        raise IncompatibleAdapterError(message)
    if not bool(torch.isfinite(values).all()):
        message = (
            f"{who}, parameter {name}: expected finite values, got NaN or infinity; lower "
            "training.learning_rate or leave the site out"
        )
        raise NonFiniteError(message)


def check_same_base(adapters: Mapping[str, SparseAdapter], previous: SparseAdapter) -> None:
    """Refuse differences of another base, or of parameters that ``previous`` does not have.

    A site may leave parameters out that it does not change.

    Raises:
        IncompatibleAdapterError: naming the first site, by name, and parameter that differ.
        NonFiniteError: a value is NaN or infinite.
    """
    check_sparse(previous)
    for site in sorted(adapters):
        adapter = check_sparse(adapters[site], site=site)
        if adapter.base != previous.base:
            message = (
                f"adapter of site {site!r}: expected base {previous.base}, got {adapter.base}; "
                "load the same model.name and dtype at every site"
            )
            raise IncompatibleAdapterError(message)
        for name in adapter.parameters:
            came, expected = tuple(adapter.shapes[name]), previous.shapes.get(name)
            if expected is None or came != tuple(expected):
                message = (
                    f"adapter of site {site!r}, parameter {name}: expected shape "
                    f"{expected or 'none, as it is no parameter of the adapter sent'}, got {came}; "
                    "load the same model.name and use one adapter.targets"
                )
                raise IncompatibleAdapterError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseSumTerms:
    """Sum of sparse vectors, and how many of them hold each entry."""

    indices: Int64[Tensor, " entries"]
    """Union of the supports, ascending."""
    values: Float64[Tensor, " entries"]
    holders: Int64[Tensor, " entries"]
    """Number of vectors that hold each place."""


def weighted_sum(adapters: Sequence[tuple[float, SparseAdapter]], name: str) -> SparseSumTerms:
    """Return Σ w_i δ_i of one parameter; an adapter without the parameter adds nothing to it."""
    held = [(weight, one) for weight, one in adapters if name in one.indices]
    none = torch.zeros(0, dtype=torch.int64)
    places = torch.cat([none, *(one.indices[name] for _, one in held)])
    values = torch.cat(
        [none.to(torch.float64), *(w * one.values[name].to(torch.float64) for w, one in held)]
    )
    union, where, holders = torch.unique(
        places, sorted=True, return_inverse=True, return_counts=True
    )
    summed = torch.zeros(len(union), dtype=torch.float64).index_add_(0, where, values)
    return SparseSumTerms(indices=union, values=summed, holders=holders)


def count_entries(adapter: SparseAdapter) -> int:
    """Return the number of entries that an adapter changes."""
    return sum(len(places) for places in adapter.indices.values())
