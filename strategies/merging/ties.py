"""Trim each site's core, elect a sign by entry, and average who agrees (TIES in core space).

With the cores M_i of the task vectors in shared bases U, V (``core_space``), weights p_i and a
factor λ:

    M̂_i = trim(M_i),  g = sign Σ p_i M̂_i,  M = Σ p_i M̂_i [M̂_i g > 0] / Σ p_i [M̂_i g > 0],

and the merge is s B A + λ U M Vᵀ at rank r, from the previous adapter (A, B, s). Trimming acts on
the entries of the cores, not on those of the dense matrices.

Reference:
    P. Yadav et al., TIES-Merging: Resolving Interference When Merging Models, NeurIPS 2023,
    https://arxiv.org/abs/2306.01708
    Differs from the paper: in core space (A. Panariello et al., NeurIPS 2025,
    https://arxiv.org/abs/2509.17786), trimmed module by module, with weights, cut to a rank.
"""

from collections.abc import Mapping

from jaxtyping import Float64
from torch import Tensor

from fedwinnow.curation.datatypes import Adapter
from fedwinnow.strategies.interfaces.merging import Merged, Merging
from fedwinnow.strategies.merge_maths.core_space import combine_in_core_space
from fedwinnow.strategies.merge_maths.factor_averages import check_rank
from fedwinnow.strategies.merge_maths.sparsify import elect_sign, trim
from fedwinnow.strategies.merge_maths.task_vectors import (
    check_density,
    check_scale,
    merge_task_vectors,
)


def ties(*, density: float = 0.5, scale: float = 1.0, rank: int = 0) -> Merging:
    """Keep the largest entries of the cores, and average those of the elected sign.

    One site's merge is its trimmed task vector. Report: ``discarded_energy``, ``rank``,
    ``merged_norm`` (before the cut), ``target_norm`` (‖ΔW*‖), ``relative_error`` (distance from
    ΔW*).

    Args:
        density: Share of a core's entries that each site keeps, in (0, 1].
        scale: λ, above 0.
        rank: Rank of every merged module, at least 1 and at most what its matrix can have; 0 keeps
            each module's previous rank.

    Raises:
        ValueError: a setting is out of range.

    Reference:
        TIES-Merging, NeurIPS 2023, https://arxiv.org/abs/2306.01708
    """
    check_density(density)
    check_scale(scale)
    check_rank(rank)

    def rule(
        module: str,  # noqa: ARG001 - the same for all
        cores: Mapping[str, Float64[Tensor, "p q"]],
        shares: Mapping[str, float],
    ) -> Float64[Tensor, "p q"]:
        kept = {site: trim(core, density) for site, core in cores.items()}
        return elect_sign(kept.__getitem__, shares)

    def merge(
        adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
    ) -> Merged:
        return merge_task_vectors(
            adapters, weights, previous, rank=rank, bend=combine_in_core_space(rule, scale)
        )

    return merge
