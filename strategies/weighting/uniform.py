"""Weigh all sites that trained alike.

p_i = 1 / n over the n sites with a count above 0.
"""

from collections.abc import Mapping

from fedwinnow.strategies.interfaces.weighting import Weighting
from fedwinnow.strategies.weighting.samples_kept import trained_sites


def uniform() -> Weighting:
    """Weigh every site with a kept sample alike: a control for weighting by counts."""
    return _weigh


def _weigh(counts: Mapping[str, int]) -> Mapping[str, float]:
    sites = trained_sites(counts)
    return dict.fromkeys(sites, 1 / len(sites))
