"""Adapters as data: identity, checks, and exact maths on products without forming them.

A module's update is ΔW = s · B A. A weighted sum of updates is a product of stacked factors,
Σ p_i s_i B_i A_i = L R with L = [p_1 s_1 B_1, …] and R = [A_1; …], so with the QR forms L = Q_l R_l
and Rᵀ = Q_r R_r the small core R_l R_rᵀ has the singular values and the norm of the dense matrix.
All in float64.

Reference:
    QR of stacked factors and SVD of the core: the usual way to the SVD of a low-rank product;
    G. H. Golub, C. F. Van Loan, Matrix Computations, 4th ed. 2013, section 5.4 (R-bidiagonalisation
    uses the same reduction).
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

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
    """SHA-256 of names, shapes, dtypes, bytes and scales, in hexadecimal.

    Independent of the order of the mappings and of the memory layout of the tensors. The base is
    not part of it: peers compare fingerprints of bases apart.
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
    """Refuse an adapter that is no set of finite factor pairs of rank ≥ 1.

    Args:
        adapter: What to check.
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


def shares(adapters: Mapping[str, object], weights: Mapping[str, float]) -> dict[str, float]:
    """Normalised weights of the sites that sent an adapter, in sorted order of name.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A matrix as a product of factors, never multiplied out."""

    left: Float64[Tensor, "outputs rank"]
    right: Float64[Tensor, "rank inputs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """Thin SVD of a product: ``u @ diag(values) @ vt``, values descending, signs fixed.

    All singular values, and the vectors of all or of the first of them.
    """

    u: Float64[Tensor, "outputs kept"]
    values: Float64[Tensor, " k"]
    vt: Float64[Tensor, "kept inputs"]


def delta(adapter: Adapter, module: str, weight: float = 1.0) -> Product:
    """The weighted update ``weight · s · B A`` of one module."""
    scale = weight * adapter.scales[module]
    return Product(
        left=scale * adapter.b[module].to(torch.float64),
        right=adapter.a[module].to(torch.float64),
    )


def total(products: Sequence[Product]) -> Product:
    """The sum of at least one product, as a product of stacked factors."""
    return Product(
        left=torch.cat([product.left for product in products], dim=1),
        right=torch.cat([product.right for product in products], dim=0),
    )


def target(adapters: Mapping[str, Adapter], weights: Mapping[str, float], module: str) -> Product:
    """ΔW* = Σ p_i s_i B_i A_i of one module, over ``weights`` in their order."""
    return total([delta(adapters[site], module, weight) for site, weight in weights.items()])


def norm(product: Product) -> float:
    """Frobenius norm, from the core."""
    _, core, _ = _reduce(product)
    return float(torch.linalg.matrix_norm(core))


def decompose(product: Product, *, keep: int | None = None) -> Spectrum:
    """Thin SVD through the core; the largest entry of each right vector is positive.

    Args:
        product: What to decompose.
        keep: How many vectors to make of each side, the first ones; None: all.
    """
    q_left, core, q_right = _reduce(product)
    u, values, vt = torch.linalg.svd(core, full_matrices=False)
    u, vt = q_left @ u[:, :keep], vt[:keep] @ q_right.T
    largest = vt.abs().argmax(dim=1, keepdim=True)
    sign = torch.where(vt.gather(1, largest) < 0, -1.0, 1.0).to(torch.float64)
    return Spectrum(u=u * sign.T, values=values, vt=vt * sign)


def _reduce(
    product: Product,
) -> tuple[Float64[Tensor, "outputs p"], Float64[Tensor, "p q"], Float64[Tensor, "inputs q"]]:
    q_left, r_left = torch.linalg.qr(product.left)
    q_right, r_right = torch.linalg.qr(product.right.T)
    return q_left, r_left @ r_right.T, q_right


def energy(values: Float[Tensor, " k"]) -> float:
    """Sum of squared singular values: ‖·‖² of what they span."""
    return float(values.square().sum())


def size_of(adapter: Adapter) -> int:
    """Bytes of an adapter's factors."""
    factors = (*adapter.a.values(), *adapter.b.values())
    return sum(factor.numel() * factor.element_size() for factor in factors)
