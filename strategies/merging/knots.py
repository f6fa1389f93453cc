"""Align all task vectors by one SVD, then merge their right-hand parts by TIES (KnOTS).

With task vectors τ_i = s_i B_i A_i − s B A (previous adapter A, B, s), weights p_i and a factor λ:

    [τ_1, …, τ_n] = U Σ [V_1ᵀ, …, V_nᵀ],   V = TIES(V_1, …, V_n; p),   s B A + λ U Σ Vᵀ at rank r.

No dense product: with the QR forms [s_1 B_1, …, s B] = Q [R_1, …, R_0] and [A_iᵀ, Aᵀ] = Q_i S_i,
τ_i = Q G_i Q_iᵀ with the small G_i = [R_i, −R_0] S_iᵀ, so the SVD of [G_1, …, G_n] = U' Σ [W_iᵀ]
gives U = Q U' and V_iᵀ = W_iᵀ Q_iᵀ. Directions below the rounding of float32 are left out.

Reference:
    G. Stoica et al., Model merging with SVD to tie the Knots, ICLR 2025,
    https://arxiv.org/abs/2410.19735; TIES: P. Yadav et al., NeurIPS 2023,
    https://arxiv.org/abs/2306.01708
    Differs from the papers: trimmed module by module, with weights, cut to a rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters import checks
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.strategies.interfaces.merging import Merged, Merging
from fedwinnow.strategies.merge_maths.factor_averages import check_rank
from fedwinnow.strategies.merge_maths.sparsify import elect_sign, trim
from fedwinnow.strategies.merge_maths.task_vectors import (
    Updates,
    check_density,
    check_scale,
    merge_task_vectors,
)


def knots(*, density: float = 0.5, scale: float = 1.0, rank: int = 0) -> Merging:
    """Align the task vectors by one SVD, and merge their right-hand parts by TIES.

    Slower than ``ties``: the parts have as many columns as the module has inputs. One site's merge
    with density 1 is the site's own. Report: ``discarded_energy``, ``rank``, ``merged_norm``
    (before the cut), ``target_norm`` (‖ΔW*‖), ``relative_error`` (distance from ΔW*).

    Args:
        density: Share of the entries of V_i that each site keeps, in (0, 1].
        scale: λ, above 0.
        rank: Rank of every merged module, at least 1 and at most what its matrix can have; 0 keeps
            each module's previous rank.

    Raises:
        ValueError: a setting is out of range.

    Reference:
        KnOTS, ICLR 2025, https://arxiv.org/abs/2410.19735
    """
    check_density(density)
    check_scale(scale)
    check_rank(rank)

    def bend(
        module: str,  # noqa: ARG001 - the same for all
        shares: Mapping[str, float],
        updates: Updates,
        before: maths.Product | None,
    ) -> maths.Product:
        joint = joint_svd(updates, before)
        right = elect_sign(lambda site: trim(joint.part(site), density), shares)
        return maths.Product(left=scale * joint.left, right=right)

    def merge(
        adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
    ) -> Merged:
        return merge_task_vectors(adapters, weights, previous, rank=rank, bend=bend)

    return merge


@dataclass(frozen=True, slots=True, kw_only=True)
class JointSVD:
    """Joint SVD of one module: τ_i = ``left`` · ``part(i)``."""

    left: Float64[Tensor, "outputs k"]
    """U Σ."""
    bases: Mapping[str, Float64[Tensor, "inputs _"]]
    """Site → Q_i."""
    small: Mapping[str, Float64[Tensor, "k _"]]
    """Site → W_iᵀ."""

    def part(self, site: str) -> Float64[Tensor, "k inputs"]:
        """Return V_iᵀ = W_iᵀ Q_iᵀ of one site; made anew at each call, as all at once are large."""
        return self.small[site] @ self.bases[site].T


def joint_svd(updates: Updates, before: maths.Product | None) -> JointSVD:
    """Return the SVD of all task vectors side by side; the largest entry of each U is positive."""
    origin = [] if before is None else [before]
    q, r = torch.linalg.qr(torch.cat([x.left for x in (*updates.values(), *origin)], dim=1))
    widths = [x.left.shape[1] for x in (*updates.values(), *origin)]
    columns = dict(zip((*updates, None), torch.split(r, widths, dim=1), strict=False))
    bases, blocks = {}, {}
    for site, update in updates.items():
        left, right = columns[site], update.right
        if before is not None:
            left = torch.cat([left, -columns[None]], dim=1)
            right = torch.cat([right, before.right])
        bases[site], s = torch.linalg.qr(right.T)
        blocks[site] = left @ s.T
    u, values, wt = torch.linalg.svd(torch.cat(list(blocks.values()), dim=1), full_matrices=False)
    used = max(1, int((values > checks.TOLERANCE * values[0]).sum()))
    u = q @ u[:, :used]
    largest = u.gather(0, u.abs().argmax(dim=0, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(torch.float64)
    sizes = [block.shape[1] for block in blocks.values()]
    small = dict(zip(blocks, torch.split(sign.T * wt[:used], sizes, dim=1), strict=True))
    return JointSVD(left=u * sign * values[:used], bases=bases, small=small)
