"""Compute exactly with adapters as products of factors, without forming the products.

A module's update is ΔW = s · B A. A weighted sum of updates is a product of stacked factors,
Σ p_i s_i B_i A_i = L R with L = [p_1 s_1 B_1, …] and R = [A_1; …], so with the QR forms L = Q_l R_l
and Rᵀ = Q_r R_r the small core R_l R_rᵀ has the singular values and the norm of the dense matrix.
All in float64.

Reference:
    QR of stacked factors and SVD of the core: the usual way to the SVD of a low-rank product;
    G. H. Golub, C. F. Van Loan, Matrix Computations, 4th ed. 2013, section 5.4 (R-bidiagonalisation
    uses the same reduction).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fedwinnow.curation.datatypes import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A matrix as a product of factors, never multiplied out."""

    left: Float64[Tensor, "outputs rank"]
    right: Float64[Tensor, "rank inputs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """Thin SVD of a product: ``u @ diag(values) @ vt``, values descending, signs fixed.

    It holds all singular values, and the vectors of all or of the first of them.
    """

    u: Float64[Tensor, "outputs kept"]
    values: Float64[Tensor, " k"]
    vt: Float64[Tensor, "kept inputs"]


def delta(adapter: Adapter, module: str, weight: float = 1.0) -> Product:
    """Return the weighted update ``weight · s · B A`` of one module."""
    scale = weight * adapter.scales[module]
    return Product(
        left=scale * adapter.b[module].to(torch.float64),
        right=adapter.a[module].to(torch.float64),
    )


def sum_products(products: Sequence[Product]) -> Product:
    """Add up at least one product, as a product of stacked factors."""
    return Product(
        left=torch.cat([product.left for product in products], dim=1),
        right=torch.cat([product.right for product in products], dim=0),
    )


def target(adapters: Mapping[str, Adapter], weights: Mapping[str, float], module: str) -> Product:
    """Return ΔW* = Σ p_i s_i B_i A_i of one module, over ``weights`` in their order."""
    return sum_products([delta(adapters[site], module, weight) for site, weight in weights.items()])


def norm(product: Product) -> float:
    """Return the Frobenius norm, from the core."""
    _, core, _ = _reduce(product)
    return float(torch.linalg.matrix_norm(core))


def decompose(product: Product, *, keep: int | None = None) -> Spectrum:
    """Compute the thin SVD through the core; the largest entry of each right vector is positive.

    Args:
        product: The product to decompose.
        keep: Number of vectors to compute of each side, the first ones; None: all.
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
    """Return the sum of squared singular values: ‖·‖² of their matrix."""
    return float(values.square().sum())


def combine(parts: Sequence[tuple[float, Adapter]], like: Adapter) -> Adapter:
    """Return the adapter whose update is exactly the weighted sum of several.

    Args:
        parts: At least one (coefficient, adapter), all of the modules of ``like``.
        like: Gives base, scales and dtypes.
    """
    a, b = {}, {}
    for module in like.modules:
        products = [(share, delta(one, module)) for share, one in parts]
        (share, first), *others = products
        left, right = first.left, first.right
        if all(torch.equal(right, other.right) for _, other in others):
            left = sum((c * other.left for c, other in others), start=share * left)
        elif all(torch.equal(left, other.left) for _, other in others):
            right = sum((c * other.right for c, other in others), start=share * right)
        else:
            whole = sum_products([delta(one, module, c) for c, one in parts])
            left, right = whole.left, whole.right
        a[module] = right.to(like.a[module].dtype)
        b[module] = (left / like.scales[module]).to(like.b[module].dtype)
    return replace(like, a=a, b=b)


def interpolate(start: Adapter, end: Adapter, share: float) -> Adapter:
    """Return ΔW_start + share · (ΔW_end − ΔW_start), in the scales and dtypes of ``end``."""
    return combine([(1 - share, start), (share, end)], end)


def balance_factors(
    spectrum: Spectrum, like: Adapter, module: str, kept: slice = slice(None)
) -> tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]:
    """Return A and B of one module, with the singular values split equally between them.

    Args:
        spectrum: The update's SVD.
        like: Gives scale and dtypes of the module.
        module: The module's name.
        kept: Directions to keep; all by default.
    """
    root = spectrum.values[kept].sqrt()
    a, b = root[:, None] * spectrum.vt[kept], spectrum.u[:, kept] * root
    scaled = b / like.scales[module]
    return a.to(like.a[module].dtype), scaled.to(like.b[module].dtype)
