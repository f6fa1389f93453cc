"""Drop entries of each site's core at random, grow the others, and sum (DARE in core space).

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

from collections.abc import Callable, Mapping
from typing import TypeAlias

from jaxtyping import Float64
from torch import Tensor

from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.strategies.interfaces.merging import Merged, Merging
from fedwinnow.strategies.merge_maths.core_space import combine_in_core_space
from fedwinnow.strategies.merge_maths.factor_averages import check_rank
from fedwinnow.strategies.merge_maths.sparsify import drop_at_random
from fedwinnow.strategies.merge_maths.task_vectors import (
    check_density,
    check_scale,
    merge_task_vectors,
)

Core: TypeAlias = Float64[Tensor, "p q"]
Cores: TypeAlias = Mapping[str, Core]
Combine: TypeAlias = Callable[[Cores, Mapping[str, float]], Core]
"""From each site's dropped core, and the shares, to the merged core."""


def dare(*, density: float = 0.5, scale: float = 1.0, rank: int = 0, seed: int = 0) -> Merging:
    """Drop at random and rescale; unbiased, so it helps only with a rule that gains from sparsity.

    Draws derive from ``seed``, the previous adapter, module and site: they repeat on every machine,
    and differ from round to round. Report: ``discarded_energy``, ``rank``, ``merged_norm`` (before
    the cut), ``target_norm`` (‖ΔW*‖), ``relative_error`` (distance from ΔW*).

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
    return combine_dropped(_weighted_sum, density=density, scale=scale, rank=rank, seed=seed)


def combine_dropped(
    combine: Combine, *, density: float, scale: float, rank: int, seed: int
) -> Merging:
    """Make a rule that combines cores with entries dropped at random: ``dare`` and ``dare_ties``.

    Args:
        combine: From each site's dropped core, and the shares, to the merged core.
        density: Probability that an entry is kept, in (0, 1].
        scale: λ, above 0.
        rank: Rank of every merged module; 0 keeps each module's previous rank.
        seed: Seed of the draws.

    Raises:
        ValueError: a setting is out of range.
    """
    check_density(density)
    check_scale(scale)
    check_rank(rank)

    def merge(
        adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
    ) -> Merged:
        started = adapter_hash(previous)

        def rule(module: str, cores: Cores, shares: Mapping[str, float]) -> Core:
            kept = {
                site: drop_at_random(cores[site], density, drop_seed(seed, started, module, site))
                for site in shares
            }
            return combine(kept, shares)

        return merge_task_vectors(
            adapters, weights, previous, rank=rank, bend=combine_in_core_space(rule, scale)
        )

    return merge


def _weighted_sum(kept: Cores, shares: Mapping[str, float]) -> Core:
    first, *others = (share * kept[site] for site, share in shares.items())
    return sum(others, start=first)


def drop_seed(seed: int, started: str, module: str, site: str) -> int:
    """Return the seed of one site's draws for one module; ``started``: previous adapter's hash."""
    return derive_seed(seed, "dare", started, module, site)
