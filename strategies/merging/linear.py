"""Sum weighted task vectors, times a factor, and cut to the rank (task arithmetic).

With weights p_i (sum 1), the factor λ and τ_i = s_i B_i A_i − s B A, what site i added:

    s B A + λ Σ p_i τ_i,   then the best adapter of rank r.

λ = 1 is the weighted mean, as ``core_svd``; λ = n with equal weights is the plain sum of all n task
vectors; λ between is the usual choice where sites learn different things.

Reference:
    G. Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023,
    https://arxiv.org/abs/2212.04089
    Differs from the paper: task vectors are weighted and measured from the start of the round.
"""

from collections.abc import Mapping

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.strategies.interfaces.merging import Merged, Merging
from fedwinnow.strategies.merge_maths.factor_averages import check_rank
from fedwinnow.strategies.merge_maths.task_vectors import Updates, check_scale, merge_task_vectors


def linear(*, scale: float = 1.0, rank: int = 0) -> Merging:
    """Sum the task vectors with weights that add up to ``scale``.

    Report: ``discarded_energy``, ``rank``, ``merged_norm`` (before the cut), ``target_norm``
    (‖ΔW*‖) and ``relative_error`` (distance from ΔW*).

    Args:
        scale: λ, above 0; 1 gives the weighted mean, the number of sites their sum.
        rank: Rank of every merged module, at least 1 and at most what its matrix can have; 0 keeps
            each module's previous rank.

    Raises:
        ValueError: a setting is out of range.

    Reference:
        Task arithmetic, ICLR 2023, https://arxiv.org/abs/2212.04089
    """
    check_scale(scale)
    check_rank(rank)

    def bend(
        module: str,  # noqa: ARG001 - the same for all
        shares: Mapping[str, float],
        updates: Updates,
        before: maths.Product | None,
    ) -> maths.Product:
        parts = [_times(scale * share, updates[site]) for site, share in shares.items()]
        return maths.sum_products([*parts, _times(-scale, before)] if before is not None else parts)

    def merge(
        adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
    ) -> Merged:
        return merge_task_vectors(adapters, weights, previous, rank=rank, bend=bend)

    return merge


def _times(factor: float, product: maths.Product) -> maths.Product:
    return maths.Product(left=factor * product.left, right=product.right)
