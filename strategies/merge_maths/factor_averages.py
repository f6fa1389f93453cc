"""Average factors, truncate a product to a rank, and factor a change of the base.

With weights p_i, scales s_i and the previous scale s, averaging is exact where A is shared, as

    Σ p_i s_i B_i A = s · (Σ p_i (s_i / s) B_i) · A,   and likewise for a shared B,

and averaging both factors is off by the factors' weighted covariance,

    Σ p_i s B_i A_i − s B̄ Ā = s Σ p_i (B_i − B̄)(A_i − Ā),   B̄ = Σ p_i B_i,  Ā = Σ p_i A_i,

once each B_i is brought to the previous scale: B_i ← (s_i / s) B_i.

Maths in float64; factors come out in the dtype of the previous adapter. Source of the identity:
expansion of the products; of the cut: the singular value decomposition is the best approximation
of its rank (C. Eckart, G. Young, Psychometrika 1936).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters import checks
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import IncompatibleAdapterError
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.strategies.interfaces.merging import Merged

Part = Literal["a", "b"]


def checked_shares(
    adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
) -> dict[str, float]:
    """Check the adapters as every rule needs it; return the shares of sites with weight above 0.

    Raises:
        EmptySelectionError: no site with an adapter has a weight above 0.
        IncompatibleAdapterError: bases, modules or shapes differ.
        NonFiniteError: a factor, scale or weight is NaN or infinite.
        ProtocolError: a weight is negative.
    """
    checks.check_compatible(adapters, previous)
    return checks.normalise_weights(adapters, weights)


def check_rank(rank: int) -> None:
    """Refuse a negative ``rank``.

    Raises:
        ValueError: ``rank`` is negative.
    """
    if rank < 0:
        message = f"rank = {rank} is out of range; allowed: at least 1, or 0 for the previous rank"
        raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorAverages:
    """Averages of both factors of one module, and the error of their product."""

    mean: maths.Product
    """s B̄ Ā, with the scale in the left factor."""
    covariance: maths.Product
    """ΔW* − s B̄ Ā."""


def average_both_factors(
    adapters: Mapping[str, Adapter], shares: Mapping[str, float], module: str
) -> FactorAverages:
    """Average both factors separately; unequal ranks are padded with zeros to the largest."""
    rank = max(adapters[site].a[module].shape[0] for site in shares)
    products = {site: _padded(maths.delta(adapters[site], module), rank) for site in shares}
    mean = maths.Product(
        left=torch.stack([shares[s] * p.left for s, p in products.items()]).sum(dim=0),
        right=torch.stack([shares[s] * p.right for s, p in products.items()]).sum(dim=0),
    )
    apart = [
        maths.Product(left=shares[s] * (p.left - mean.left), right=p.right - mean.right)
        for s, p in products.items()
    ]
    return FactorAverages(mean=mean, covariance=maths.sum_products(apart))


def _padded(product: maths.Product, rank: int) -> maths.Product:
    missing = rank - product.right.shape[0]
    return maths.Product(
        left=torch.nn.functional.pad(product.left, (0, missing)),
        right=torch.nn.functional.pad(product.right, (0, 0, 0, missing)),
    )


def first_changed_factor(
    adapters: Mapping[str, Adapter], shares: Mapping[str, float], previous: Adapter, part: Part
) -> tuple[str, str] | None:
    """Return the first site and module whose factor is not ``previous``'s, bit for bit; or None."""
    for site in shares:
        for module in previous.modules:
            mine, before = (getattr(x, part)[module] for x in (adapters[site], previous))
            if mine.dtype != before.dtype or not torch.equal(mine, before):
                return site, module
    return None


def check_shared_a(
    adapters: Mapping[str, Adapter], shares: Mapping[str, float], previous: Adapter, rule: str
) -> None:
    """Refuse sites whose A is not the previous one, bit for bit.

    Raises:
        IncompatibleAdapterError: a site's A differs from the previous one.
    """
    differs = first_changed_factor(adapters, shares, previous, "a")
    if differs is not None:
        message = (
            f"adapter of site {differs[0]!r}, module {differs[1]}: merging {rule} expected A bit "
            "for bit as it was sent, got another; let the sites train B only, or set merging.name "
            "= 'core_svd'"
        )
        raise IncompatibleAdapterError(message)


def average_factor(
    adapters: Mapping[str, Adapter], shares: Mapping[str, float], previous: Adapter, part: Part
) -> Merged:
    """Merge exactly where the other factor is shared: Σ p_i (s_i / s) of this one."""
    factors, square = {}, 0.0
    for module in previous.modules:
        before = getattr(previous, part)[module]
        ratios = {
            site: share * adapters[site].scales[module] / previous.scales[module]
            for site, share in shares.items()
        }
        found = torch.stack(
            [x * getattr(adapters[s], part)[module].to(torch.float64) for s, x in ratios.items()]
        ).sum(dim=0)
        factors[module] = found.to(before.dtype)
    merged = replace(previous, a=factors) if part == "a" else replace(previous, b=factors)
    checks.check_adapter(merged)
    for module in previous.modules:
        square += maths.norm(maths.delta(merged, module)) ** 2
    return Merged(adapter=merged, report=exact_report(merged, square))


def exact_report(merged: Adapter, square: float) -> dict[str, float]:
    """Return the report of a rule that loses nothing; ``square`` is ‖ΔW*‖²."""
    return {
        "rank": largest_rank(merged),
        "target_norm": square**0.5,
        "discarded_energy": 0.0,
    }


def largest_rank(adapter: Adapter) -> float:
    """Return the largest rank of a module."""
    return float(max(factor.shape[0] for factor in adapter.a.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedAdapter:
    """Adapter of bounded rank, with the energy it lost and the energy before the cut."""

    adapter: Adapter
    lost: float
    """‖·‖² of the directions that were left out."""
    whole: float
    """‖·‖² of all."""

    @property
    def discarded_energy(self) -> float:
        """Return the share of ``whole`` that is lost, in [0, 1]."""
        return self.lost / self.whole if self.whole > 0 else 0.0


def truncate_to_rank(
    previous: Adapter, rank: int, goal: Callable[[str], maths.Product]
) -> TruncatedAdapter:
    """Return the best adapter of a rank; only one module's ``goal`` is held at a time.

    With goal = U Σ Vᵀ, the previous scale s, and c the root mean square length of the rows of the
    previous A: A = c V_rᵀ, B = U_r Σ_r / (s c). Directions that are not needed are rows of the
    previous A that the goal explains least, with B = 0: they change nothing and can be trained.

    Args:
        previous: Gives scales, dtypes, row lengths and rows to fill with.
        rank: Rank of every module, at most what its matrix can have; 0: each module's previous one.
        goal: Module → product to approximate.
    """
    a, b, lost, whole = {}, {}, 0.0, 0.0
    for module in previous.modules:
        outputs, inputs = previous.b[module].shape[0], previous.a[module].shape[1]
        size = min(rank, outputs, inputs) if rank else previous.a[module].shape[0]
        spectrum = maths.decompose(goal(module), keep=size)
        values = spectrum.values[:size]
        used = int((values > checks.TOLERANCE * spectrum.values[0]).sum())
        whole += maths.energy(spectrum.values)
        lost += maths.energy(spectrum.values[used:])
        right, left = _factors(spectrum, used, size, previous, module)
        a[module] = right.to(previous.a[module].dtype)
        b[module] = left.to(previous.b[module].dtype)
    merged = replace(previous, a=a, b=b)
    checks.check_adapter(merged)
    return TruncatedAdapter(adapter=merged, lost=lost, whole=whole)


def _factors(
    spectrum: maths.Spectrum, used: int, size: int, previous: Adapter, module: str
) -> tuple[Float64[Tensor, "size inputs"], Float64[Tensor, "outputs size"]]:
    """Return A and B of one module: the first ``used`` directions, then trainable rows."""
    before = previous.a[module].to(torch.float64)
    length = float(before.square().sum(dim=1).mean().sqrt()) or 1.0
    vt, values = spectrum.vt[:used], spectrum.values[:used]
    fill = _rows(before, vt, size - used, length, module)
    right = torch.cat([length * vt, fill])
    left = torch.zeros(spectrum.u.shape[0], size, dtype=torch.float64)
    left[:, :used] = spectrum.u[:, :used] * values / (previous.scales[module] * length)
    return right, left


def _rows(
    before: Float64[Tensor, "rank inputs"],
    vt: Float64[Tensor, "used inputs"],
    count: int,
    length: float,
    module: str,
) -> Float64[Tensor, "count inputs"]:
    """Return the ``count`` rows of the previous A that ``vt`` explains least, in their order."""
    rest = (before - before @ vt.T @ vt).square().sum(dim=1)
    chosen = torch.argsort(rest, descending=True, stable=True)[:count].sort().values
    rows = [before[chosen]]
    missing = count - len(chosen)
    if missing:
        generator = torch.Generator().manual_seed(derive_seed(0, "core_svd", module))
        drawn = torch.randn(missing, before.shape[1], generator=generator, dtype=torch.float64)
        rows.append(length * drawn / drawn.norm(dim=1, keepdim=True))
    return torch.cat(rows)


def needed_rank(values: Float[Tensor, " k"], norm: float) -> int:
    """Return how many leading singular values leave a tail of at most ``TOLERANCE · norm``."""
    tails = values.flip(0).square().cumsum(0).flip(0).sqrt()
    return int((tails > checks.TOLERANCE * norm).sum())


def base_change_factors(
    previous: Adapter, products: Callable[[str], maths.Product], norms: Mapping[str, float]
) -> Adapter | None:
    """Return a change of the base as factors of the smallest rank; None where nothing changes.

    Args:
        previous: Gives base, modules and dtypes.
        products: Module → the change.
        norms: Module → the norm that rounding errors of float32 are measured by.

    Returns:
        Factors of scale 1 with singular values in B, of the modules that change.
    """
    a, b = {}, {}
    for module in previous.modules:
        spectrum = maths.decompose(products(module))
        used = needed_rank(spectrum.values, norms[module])
        if used:
            left = spectrum.u[:, :used] * spectrum.values[:used]
            a[module] = spectrum.vt[:used].to(previous.a[module].dtype).clone()
            b[module] = left.to(previous.b[module].dtype)
    if not a:
        return None
    change = Adapter(base=previous.base, a=a, b=b, scales=dict.fromkeys(a, 1.0))
    checks.check_adapter(change)
    return change
