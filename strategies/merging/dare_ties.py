"""Drop core entries at random, grow the rest, elect a sign, average who agrees (DARE, then TIES).

With the cores M_i of the task vectors in shared bases U, V (``core_space``), weights p_i, a factor
λ, and independent draws b_i of 0 or 1 with mean d, entry by entry:

    M̂_i = (b_i / d) M_i,  g = sign Σ p_i M̂_i,  M = Σ p_i M̂_i [M̂_i g > 0] / Σ p_i [M̂_i g > 0],

and the merge is s B A + λ U M Vᵀ at rank r, from the previous adapter (A, B, s). Dropping acts on
the entries of the cores, not on those of the dense matrices.

Reference:
    L. Yu et al., Language Models are Super Mario: Absorbing Abilities from Homologous Models as a
    Free Lunch, ICML 2024, https://arxiv.org/abs/2311.03099; election of signs:
    P. Yadav et al., TIES-Merging, NeurIPS 2023, https://arxiv.org/abs/2306.01708
    Differs from the papers: in core space (A. Panariello et al., NeurIPS 2025,
    https://arxiv.org/abs/2509.17786), with weights, cut to a rank.
"""

from collections.abc import Mapping

from fedwinnow.strategies.interfaces.merging import Merging
from fedwinnow.strategies.merge_maths.sparsify import elect_sign
from fedwinnow.strategies.merging.dare import Core, Cores, combine_dropped


def dare_ties(*, density: float = 0.5, scale: float = 1.0, rank: int = 0, seed: int = 0) -> Merging:
    """Drop at random, rescale, and average the entries that have the elected sign.

    The mean is over the sites whose entry survived with that sign, so entries that few kept are
    larger than in ``dare``. Draws are those of ``dare``. Report: ``discarded_energy``, ``rank``,
    ``merged_norm`` (before the cut), ``target_norm`` (‖ΔW*‖), ``relative_error`` (distance from
    ΔW*).

    Args:
        density: Probability that an entry of a core is kept, in (0, 1].
        scale: λ, above 0.
        rank: Rank of every merged module, at least 1 and at most what its matrix can have; 0 keeps
            each module's previous rank.
        seed: Seed of the draws.

    Raises:
        ValueError: a setting is out of range.

    Reference:
        DARE, ICML 2024, https://arxiv.org/abs/2311.03099
    """
    return combine_dropped(_elected, density=density, scale=scale, rank=rank, seed=seed)


def _elected(kept: Cores, shares: Mapping[str, float]) -> Core:
    return elect_sign(kept.__getitem__, shares)
