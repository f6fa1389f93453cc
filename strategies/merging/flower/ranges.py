"""Check the settings of Flower's strategies, which take any number, and the sites they need.

Krum and MultiKrum detect f liars among n sites if n ≥ 2 f + 3, Bulyan if n ≥ 4 f + 3: a run must
plan for that many sites. A round that a site missed still goes on while Krum has a neighbour to
look at, n ≥ f + 3.

Reference:
    P. Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent,
    NeurIPS 2017, proposition 4.2, https://arxiv.org/abs/1703.02757
    E. M. El Mhamdi et al., The Hidden Vulnerability of Distributed Learning in Byzantium, ICML
    2018, section 4, https://arxiv.org/abs/1802.07927
"""

import math
from collections.abc import Callable, Mapping

from fedwinnow.curation.errors import ConfigError

_ABOVE_0 = (lambda x: 0 < x < math.inf, "above 0")
_SHARE = (lambda x: 0 <= x < 1, "in [0, 1)")
RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "beta": (lambda x: 0 <= x < 0.5, "in [0, 0.5)"),  # noqa: PLR2004 - half from either end is all
    "beta_1": _SHARE,
    "beta_2": _SHARE,
    "eta": _ABOVE_0,
    "eta_l": _ABOVE_0,
    "num_malicious_nodes": (lambda x: x >= 0, "at least 0"),
    "num_nodes_to_select": (lambda x: x >= 1, "at least 1"),
    "server_learning_rate": _ABOVE_0,
    "server_momentum": _SHARE,
    "tau": _ABOVE_0,
}
"""Setting → whether a number is in its range, and the range in words."""
_PER_LIAR: Mapping[str, int] = {"Krum": 2, "MultiKrum": 2, "Bulyan": 4}


def check_sites(name: str, settings: Mapping[str, float | int], sites: int) -> None:
    """Refuse a round in which no site has a neighbour left once the liars are counted out.

    Raises:
        ConfigError: naming setting, value, and how many sites it needs.
    """
    liars = int(settings.get("num_malicious_nodes", 0))
    if name in _PER_LIAR and liars and sites < liars + 3:
        message = (
            f"merging 'flower:{name}': num_malicious_nodes = {liars} needs at least {liars + 3} "
            f"adapters, and {fewest_sites(name, settings)} to be sure, got {sites}; lower it"
        )
        raise ConfigError(message)


def check_ranges(settings: Mapping[str, float | int]) -> None:
    """Refuse a number that no strategy can use; a setting that is not known here passes.

    Raises:
        ValueError: naming the setting, its value and its range.
    """
    for key, value in settings.items():
        holds, words = RANGES.get(key, (lambda _: True, ""))
        if not holds(value):
            message = f"{key} = {value} is out of range; allowed: {words}"
            raise ValueError(message)


def fewest_sites(name: str, settings: Mapping[str, float | int]) -> int:
    """Return how many sites a strategy needs to withstand ``num_malicious_nodes``; 1 for none."""
    liars = int(settings.get("num_malicious_nodes", 0))
    return _PER_LIAR.get(name, 0) * liars + 3 if liars else 1
