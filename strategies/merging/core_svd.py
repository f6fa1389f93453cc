"""The best adapter of a fixed rank: truncated SVD of ΔW*, through QR and a small core.

With ΔW* = Σ p_i s_i B_i A_i = U Σ Vᵀ (never formed), the previous scale s, and c the root mean
square length of the rows of the previous A, the first r directions become

    A = c V_rᵀ,   B = U_r Σ_r / (s c).

So the scale stays, rows of A keep the length that training is tuned to (the gradient of B grows
with A), and B carries the size of the update, as after ordinary LoRA training.

Reference:
    J. Bai et al., Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and
    Client Resources (FlexLoRA), NeurIPS 2024, section 3, https://arxiv.org/abs/2402.11505
    Differs from the paper: the dense ΔW* is never formed, and singular values go to B.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float64
from torch import Tensor

from fedwinnow.curation import adapters as maths
from fedwinnow.curation.nouns import Adapter
from fedwinnow.curation.protocols import Merged, Merging
from fedwinnow.curation.seeds import derive_seed

TOLERANCE = 2.0**-23
"""Directions with a singular value of at most this share of the largest count as zero: they are
below the rounding of float32 factors."""


def core_svd(*, rank: int = 0) -> Merging:
    """Merge to the best approximation of rank r; report what it loses.

    Directions that the update does not need are filled with the rows of the previous A that it
    explains least, and B = 0 there: they change nothing and can be trained; a zero update gives the
    previous A with B = 0. Where the previous A has too few rows, seeded random ones are used.
    Report: ``discarded_energy`` (share of ‖ΔW*‖² over all modules that is lost, in [0, 1]),
    ``rank`` (largest of a module) and ``target_norm`` (‖ΔW*‖).

    Args:
        rank: Rank of every merged module, at least 1; 0 keeps each module's previous rank.

    Raises:
        ValueError: ``rank`` is negative.

    Reference:
        FlexLoRA, NeurIPS 2024, https://arxiv.org/abs/2402.11505
    """
    if rank < 0:
        message = f"rank = {rank} is out of range; allowed: at least 1, or 0 for the previous rank"
        raise ValueError(message)

    def merge(
        adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
    ) -> Merged:
        maths.check_compatible(adapters, previous)
        shares = maths.shares(adapters, weights)
        a, b, lost, whole = {}, {}, 0.0, 0.0
        for module in previous.modules:
            spectrum = maths.decompose(maths.target(adapters, shares, module))
            size = rank or previous.a[module].shape[0]
            used = _significant(spectrum, size)
            whole += maths.energy(spectrum.values)
            lost += maths.energy(spectrum.values[used:])
            right, left = _factors(spectrum, used, size, previous, module)
            a[module] = right.to(previous.a[module].dtype)
            b[module] = left.to(previous.b[module].dtype)
        merged = Adapter(base=previous.base, a=a, b=b, scales=dict(previous.scales))
        maths.check_adapter(merged)
        report = {
            "discarded_energy": lost / whole if whole > 0 else 0.0,
            "rank": float(max(factor.shape[0] for factor in a.values())),
            "target_norm": whole**0.5,
        }
        return Merged(adapter=merged, report=report)

    return merge


def _significant(spectrum: maths.Spectrum, size: int) -> int:
    """How many of the first ``size`` directions are above the tolerance."""
    values = spectrum.values[:size]
    return int((values > TOLERANCE * spectrum.values[0]).sum())


def _factors(
    spectrum: maths.Spectrum, used: int, size: int, previous: Adapter, module: str
) -> tuple[Float64[Tensor, "size inputs"], Float64[Tensor, "outputs size"]]:
    """A and B of one module: the first ``used`` directions, then rows that can be trained."""
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
    """``count`` rows of the previous A, least explained by ``vt`` first chosen, in their order."""
    rest = (before - before @ vt.T @ vt).square().sum(dim=1)
    chosen = torch.argsort(rest, descending=True, stable=True)[:count].sort().values
    rows = [before[chosen]]
    missing = count - len(chosen)
    if missing:
        generator = torch.Generator().manual_seed(derive_seed(0, "core_svd", module))
        drawn = torch.randn(missing, before.shape[1], generator=generator, dtype=torch.float64)
        rows.append(length * drawn / drawn.norm(dim=1, keepdim=True))
    return torch.cat(rows)
