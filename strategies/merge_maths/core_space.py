"""Write task vectors as small matrices in bases that all sites share, without loss (core space).

Stack the left factors of all sites side by side and the right ones on top of each other; with the
left singular vectors U of [s_1 B_1, …, s_n B_n] and the right ones V of [A_1; …; A_n]:

    M_i = Uᵀ τ_i V,   τ_i = U M_i Vᵀ  (exact),   M_i of size at most Σ r_i × Σ r_i.

The previous adapter, where it is not 0, is stacked too, as τ_i is measured from it.

An entry of a core is not an entry of the dense matrix: it is how much of one shared output
direction a site adds for one shared input direction. A rule that looks at single entries (TIES,
DARE) therefore gives another result here than on the dense matrix: a dense entry mixes all
directions, most of a dense low-rank matrix is far from sparse, and its trimmed form is of full
rank; a trimmed core stays in the shared bases, so nothing of the dense size is ever made. Linear
rules give the same in both.

Reference:
    A. Panariello et al., Accurate and Efficient Low-Rank Model Merging in Core Space, NeurIPS 2025,
    https://arxiv.org/abs/2509.17786
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float64
from torch import Tensor

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.strategies.merge_maths.task_vectors import Combine, Updates

Rule: TypeAlias = Callable[
    [str, Mapping[str, Float64[Tensor, "p q"]], Mapping[str, float]], Float64[Tensor, "p q"]
]
"""From module, cores and shares to the merged core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreSpace:
    """Shared bases of one module and each site's task vector in them."""

    left: Float64[Tensor, "outputs p"]
    """U, orthonormal columns."""
    right: Float64[Tensor, "inputs q"]
    """V, orthonormal columns."""
    cores: Mapping[str, Float64[Tensor, "p q"]]
    """Site → M_i."""


def to_core_space(updates: Updates, before: maths.Product | None) -> CoreSpace:
    """Return bases and cores of at least one site; ``before`` is subtracted from each update."""
    stacked = [*updates.values()] if before is None else [*updates.values(), before]
    left = _basis([product.left for product in stacked])
    right = _basis([product.right.T for product in stacked])
    cores = {site: (left.T @ x.left) @ (x.right @ right) for site, x in updates.items()}
    if before is not None:
        origin = (left.T @ before.left) @ (before.right @ right)
        cores = {site: core - origin for site, core in cores.items()}
    return CoreSpace(left=left, right=right, cores=cores)


def _basis(
    blocks: Sequence[Float64[Tensor, "rows _"]],
) -> Float64[Tensor, "rows k"]:
    """Return the left singular vectors of the blocks side by side, strongest first.

    Directions below the rounding of float64 are left out, but for the first; the largest entry of
    each vector is positive.
    """
    stacked = torch.cat(list(blocks), dim=1)
    q, r = torch.linalg.qr(stacked)
    u, values, _ = torch.linalg.svd(r, full_matrices=False)
    floor = max(stacked.shape) * torch.finfo(torch.float64).eps * values[0]
    basis = q @ u[:, : max(1, int((values > floor).sum()))]
    largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    return torch.where(largest < 0, -basis, basis)


def combine_in_core_space(rule: Rule, scale: float) -> Combine:
    """Turn a rule on cores into a rule on task vectors: T = ``scale`` · U M Vᵀ."""

    def bend(
        module: str,
        shares: Mapping[str, float],
        updates: Updates,
        before: maths.Product | None,
    ) -> maths.Product:
        space = to_core_space(updates, before)
        merged = rule(module, space.cores, shares)
        return maths.Product(left=scale * space.left @ merged, right=space.right.T)

    return bend
