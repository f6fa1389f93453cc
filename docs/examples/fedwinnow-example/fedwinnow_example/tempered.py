"""A weighting between equal shares and shares by count.

p_i = n_iᵅ / Σ_j n_jᵅ over the sites with samples: α = 0 weighs all alike, α = 1 is FedAvg.

Reference:
    A. Conneau et al., Unsupervised Cross-lingual Representation Learning at Scale, ACL 2020,
    section 3.1, https://arxiv.org/abs/1911.02116 (α = 0.3 for languages of unequal size)
"""

import math
from collections.abc import Callable, Mapping

from fedwinnow.strategies.weighting.samples_kept import trained_sites


def tempered(*, alpha: float = 0.3) -> Callable[..., Mapping[str, float]]:
    """Make the weighting.

    Args:
        alpha: Exponent α of the counts, in [0, 1].

    Raises:
        ValueError: ``alpha`` is out of range.
    """
    if not 0 <= alpha <= 1:
        message = f"alpha = {alpha} is out of range; allowed: in [0, 1]"
        raise ValueError(message)

    def weigh(counts: Mapping[str, int]) -> Mapping[str, float]:
        sites = trained_sites(counts)  # EmptySelectionError where no site has a sample
        powers = {site: counts[site] ** alpha for site in sites}
        total = math.fsum(powers.values())
        return {site: power / total for site, power in powers.items()}

    return weigh
