"""DARE in core space: drop entries of each site's core at random, grow the others, and sum.

With the cores M_i of the task vectors in shared bases U, V (``core_space``), weights p_i, a factor
λ, and independent draws b_i of 0 or 1 with mean d, entry by entry:

    M = Σ p_i (b_i / d) M_i,   which has the mean Σ p_i M_i over the draws,

and the merge is s B A + λ U M Vᵀ at rank r, from the previous adapter (A, B, s). Dropping acts on
the entries of the cores, not on those of the dense matrices.

Reference:
    L. Yu et al., Language Models are Super Mario: Absorbing Abilities from Homologous Models as a
    Free Lunch, ICML 2024, https://arxiv.org/abs/2311.03099
    Differs from the paper: in core space (A. Panariello et al., NeurIPS 2025,
    https://arxiv.org/abs/2509.17786), with weights, cut to a rank.
"""

from collections.abc import Mapping

from jaxtyping import Float64
from torch import Tensor

from fedwinnow.curation.adapters import adapter_hash
from fedwinnow.curation.nouns import Adapter
from fedwinnow.curation.protocols import Merged, Merging
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.strategies.merging.bending import bent, check_density, check_scale
from fedwinnow.strategies.merging.core_space import Rule, in_core_space
from fedwinnow.strategies.merging.entries import dropped
from fedwinnow.strategies.merging.factors import check_rank


def dare(*, density: float = 0.5, scale: float = 1.0, rank: int = 0, seed: int = 0) -> Merging:
    """Drop at random and rescale; unbiased, so it helps only with a rule that likes sparse sums.

    Draws derive from ``seed``, the previous adapter, module and site: they repeat on every machine,
    and differ from round to round. Report: ``discarded_energy``, ``rank``, ``merged_norm`` (before
    the cut), ``target_norm`` (‖ΔW*‖), ``relative_error`` (distance from ΔW*).

    Args:
        density: Probability that an entry of a core is kept, in (0, 1].
        scale: λ, above 0.
        rank: Rank of every merged module, at least 1; 0 keeps each module's previous rank.
        seed: Seed of the draws.

    Raises:
        ValueError: a setting is out of range.

    Reference:
        DARE, ICML 2024, https://arxiv.org/abs/2311.03099
    """
    check_density(density)
    check_scale(scale)
    check_rank(rank)

    def merge(
        adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
    ) -> Merged:
        rule = _sum_of_dropped(density, seed, adapter_hash(previous))
        return bent(adapters, weights, previous, rank=rank, bend=in_core_space(rule, scale))

    return merge


def _sum_of_dropped(density: float, seed: int, started: str) -> Rule:
    def rule(
        module: str, cores: Mapping[str, Float64[Tensor, "p q"]], shares: Mapping[str, float]
    ) -> Float64[Tensor, "p q"]:
        first, *others = (
            share * dropped(cores[site], density, seed_of(seed, started, module, site))
            for site, share in shares.items()
        )
        return sum(others, start=first)

    return rule


def seed_of(seed: int, started: str, module: str, site: str) -> int:
    """Seed of one site's draws for one module; ``started`` is the hash of the previous adapter."""
    return derive_seed(seed, "dare", started, module, site)
