"""Compare two adapters of one base, matrix by matrix, without forming a matrix.

For ΔW_1 and ΔW_2 of a module, with u_i = ΔW_i / ‖ΔW_i‖ (Frobenius):

    angle = 2 atan2(‖u_1 − u_2‖, ‖u_1 + u_2‖),                          in degrees, 0 to 180,
    principal angles between the spaces that their outputs, and their inputs, span,
    outside = 1 − Σ_{k ≤ r} σ_k² / Σ_k σ_k²,   σ of [u_1 u_2]: what no common output space of
              rank r can hold, in [0, 1),
    discarded = the same for (ΔW_1 + ΔW_2) / 2: what a merge to rank r with equal weights loses.

All norms come from cores of stacked factors (see :mod:`fedwinnow.curation.adapters.algebra`), in
float64.

Reference:
    W. Kahan, How Futile are Mindless Assessments of Roundoff in Floating-Point Computation?, 2006,
    section 12 (angles that stay accurate near 0 and 180 degrees),
    https://people.eecs.berkeley.edu/~wkahan/Mindless.pdf
    Å. Björck, G. H. Golub, Numerical methods for computing angles between linear subspaces,
    Mathematics of Computation 27, 1973, https://doi.org/10.2307/2005662
    G. Stoica et al., Model merging with SVD to tie the Knots (KnOTS), ICLR 2025, section 4,
    https://arxiv.org/abs/2410.19735, for the singular values of [ΔW_1 ΔW_2]
"""

import math
import re
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from scipy.linalg import subspace_angles
from torch import Tensor

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters import checks
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import IncompatibleAdapterError

TOLERANCE = 2.0**-23
"""Directions below this share of a product's largest are rounding of its float32 factors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Differences of two products of one module; None where a product is 0 and none is defined."""

    norms: tuple[float, float]
    angle: float | None
    """Degrees."""
    output_angles: tuple[float, ...]
    """Principal angles of the output spaces, degrees, ascending; empty where a product is 0."""
    input_angles: tuple[float, ...]
    outside: float | None
    discarded: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Comparison of two adapters, by module and as a whole."""

    modules: dict[str, Difference]
    """Modules that both adapters change."""
    alone: tuple[dict[str, float], dict[str, float]]
    """Modules that only one adapter changes, with their norms."""
    norms: tuple[float, float]
    """Norms of all modules together."""
    angle: float | None
    """Degrees, over all modules as one vector; modules that one adapter lacks count as 0 there."""


def module_place(name: str) -> tuple[str, str]:
    """Return layer and module of a name: the first number in it is the layer's, as in PEFT.

    A module outside the layers has the layer "–".
    """
    match = re.match(r"^.*?\.(\d+)\.(.+)$", name)
    return (match[1], match[2]) if match else ("–", name)


def layer_sort_key(name: str) -> tuple[float, str]:
    """Return the key to sort names by: layers by number, then modules outside them."""
    layer, module = module_place(name)
    return (math.inf if layer == "–" else float(layer)), module


def compare(first: Adapter, second: Adapter, *, rank: int = 0) -> Comparison:
    """Compare two adapters module by module and as a whole.

    Args:
        first: One adapter.
        second: Another one of the same base; ranks, scales and modules may differ.
        rank: Rank of the common space, at least 1; 0 takes the larger of the two in each module.

    Raises:
        IncompatibleAdapterError: a common module has other inputs or outputs, or there is no
            common module.
        NonFiniteError: a factor is NaN or infinite.
    """
    pair = (first, second)
    checks.check_adapter(first, site="the first")
    checks.check_adapter(second, site="the second")
    common = sorted(set(first.modules) & set(second.modules))
    if not common:
        message = (
            f"adapters: expected a module that both change, got {first.modules[0]} and "
            f"{second.modules[0]}; compare adapters of one base"
        )
        raise IncompatibleAdapterError(message)
    alone = [
        {name: maths.norm(maths.delta(one, name)) for name in one.modules if name not in common}
        for one in pair
    ]
    products = {name: _pair(first, second, name) for name in common}
    norms = {name: (maths.norm(p), maths.norm(q)) for name, (p, q) in products.items()}
    total = [
        math.hypot(*(norms[name][side] for name in common), *alone[side].values())
        for side in (0, 1)
    ]
    return Comparison(
        modules={n: _difference(*products[n], norms[n], rank) for n in common},
        alone=(alone[0], alone[1]),
        norms=(total[0], total[1]),
        angle=_angle_over(products, alone, total),
    )


def _pair(first: Adapter, second: Adapter, name: str) -> tuple[maths.Product, maths.Product]:
    one, other = maths.delta(first, name), maths.delta(second, name)
    sizes = [(p.left.shape[0], p.right.shape[1]) for p in (one, other)]
    if sizes[0] != sizes[1]:
        message = (
            f"module {name}: expected the same outputs and inputs in both adapters, got {sizes[0]} "
            f"and {sizes[1]}; compare adapters of one base"
        )
        raise IncompatibleAdapterError(message)
    return one, other


def _difference(
    one: maths.Product, other: maths.Product, norms: tuple[float, float], rank: int
) -> Difference:
    size = rank or max(one.right.shape[0], other.right.shape[0])
    mean = maths.decompose(maths.sum_products([_times(one, 0.5), _times(other, 0.5)])).values
    halves = maths.energy(mean) > TOLERANCE**2 * (norms[0] ** 2 + norms[1] ** 2)
    discarded = _tail(mean, size) if halves else None
    if 0.0 in norms:
        return Difference(
            norms=norms, angle=None, output_angles=(), input_angles=(), outside=None,
            discarded=discarded,
        )  # fmt: skip
    units = _times(one, 1 / norms[0]), _times(other, 1 / norms[1])
    spaces = [_spaces(unit) for unit in units]
    return Difference(
        norms=norms,
        angle=_kahan(_apart(*units, -1.0), _apart(*units, 1.0)),
        output_angles=_principal(spaces[0][0], spaces[1][0]),
        input_angles=_principal(spaces[0][1], spaces[1][1]),
        outside=_tail(_side_by_side(*units), size),
        discarded=discarded,
    )


def _angle_over(
    products: dict[str, tuple[maths.Product, maths.Product]],
    alone: list[dict[str, float]],
    norms: list[float],
) -> float | None:
    """Return the angle over all modules as one vector, degrees."""
    if 0.0 in norms:
        return None
    rest = sum(
        (value / norm) ** 2
        for values, norm in zip(alone, norms, strict=True)
        for value in values.values()
    )
    minus = plus = rest
    for one, other in products.values():
        units = _times(one, 1 / norms[0]), _times(other, 1 / norms[1])
        minus += _apart(*units, -1.0) ** 2
        plus += _apart(*units, 1.0) ** 2
    return _kahan(minus**0.5, plus**0.5)


def _kahan(minus: float, plus: float) -> float:
    return math.degrees(2 * math.atan2(minus, plus))


def _times(product: maths.Product, factor: float) -> maths.Product:
    return maths.Product(left=factor * product.left, right=product.right)


def _apart(one: maths.Product, other: maths.Product, sign: float) -> float:
    return maths.norm(maths.sum_products([one, _times(other, sign)]))


def _tail(values: Float64[Tensor, " k"], size: int) -> float:
    """Return the share of the energy beyond the first ``size`` directions."""
    return maths.energy(values[size:]) / maths.energy(values)


def _side_by_side(one: maths.Product, other: maths.Product) -> Float64[Tensor, " k"]:
    """Return singular values of [one other], from the two input factors' triangles."""
    parts = [p.left @ torch.linalg.qr(p.right.T)[1].T for p in (one, other)]
    triangle = torch.linalg.qr(torch.cat(parts, dim=1))[1]
    values: Float64[Tensor, " k"] = torch.linalg.svdvals(triangle)
    return values


def _spaces(
    product: maths.Product,
) -> tuple[Float64[np.ndarray, "outputs k"], Float64[np.ndarray, "inputs k"]]:
    """Return orthonormal bases of the outputs and inputs that a product of norm 1 spans."""
    spectrum = maths.decompose(product)
    used = int((spectrum.values > TOLERANCE * spectrum.values[0]).sum())
    return spectrum.u[:, :used].numpy(), spectrum.vt[:used].T.numpy()


def _principal(
    one: Float64[np.ndarray, "size k"], other: Float64[np.ndarray, "size l"]
) -> tuple[float, ...]:
    return tuple(float(angle) for angle in sorted(np.degrees(subspace_angles(one, other))))
