"""Cut the federation's adapter to the part that a site of smaller rank or fewer layers trains.

Of a module's ΔW = U Σ Vᵀ such a site takes the first r_i directions, the best approximation of its
rank; the server adds the other directions to what comes back
(``server/aggregation/round_merge.py``). A layer that the site does not train stays as it came. The
server sends all sites the same adapter: the slice is made here.

Reference:
    J. Bai et al., FlexLoRA, NeurIPS 2024, section 3, https://arxiv.org/abs/2402.11505
"""

from dataclasses import replace

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.config.scoring import ALL_LINEAR, AdapterSection
from fedwinnow.curation.config.site import SiteSection
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import ConfigError
from fedwinnow.strategies.merge_maths.factor_averages import truncate_to_rank


def check_site_part(site: SiteSection, agreed: AdapterSection) -> None:
    """Refuse a site's own rank or layers that are not within the run's.

    Raises:
        ConfigError: naming the key.
    """
    if site.rank > agreed.rank:
        message = (
            f"sites.rank = {site.rank} of site {site.name!r} is above the run's adapter.rank = "
            f"{agreed.rank}; lower it, or set 0 to take the run's"
        )
        raise ConfigError(message)
    named = not agreed.target_regex and agreed.targets != (ALL_LINEAR,)
    strange = sorted(set(site.targets) - set(agreed.targets)) if named else []
    if strange:
        message = (
            f"sites.targets of site {site.name!r}: {', '.join(strange)} are none of the run's "
            f"adapter.targets; choose from {', '.join(agreed.targets)}"
        )
        raise ConfigError(message)


def check_site_targets(site: SiteSection, adapter: Adapter) -> None:
    """Refuse layers of a site's own that the run's adapter does not have.

    Raises:
        ConfigError: naming the key.
    """
    there = sorted({_last_part(module) for module in adapter.modules})
    if strange := sorted(set(site.targets) - set(there)):
        message = (
            f"sites.targets of site {site.name!r}: the run's adapter has no {', '.join(strange)}; "
            f"choose from {', '.join(there)}"
        )
        raise ConfigError(message)


def check_shared_factor(adapter: Adapter, site: SiteSection, frozen: str) -> None:
    """Refuse to train a smaller rank in a round in which all sites share a factor.

    Raises:
        ConfigError: naming the key.
    """
    if frozen and 0 < site.rank < max(len(factor) for factor in adapter.a.values()):
        message = (
            f"sites.rank = {site.rank} of site {site.name!r}: this run's merging rule has all "
            f"sites share the factor {frozen.upper()}, which has one rank; set it to 0"
        )
        raise ConfigError(message)


def untrained_modules(adapter: Adapter, site: SiteSection) -> frozenset[str]:
    """Return the modules that the site leaves as they came."""
    if not site.targets:
        return frozenset()
    return frozenset(m for m in adapter.modules if _last_part(m) not in site.targets)


def _last_part(module: str) -> str:
    return module.rpartition(".")[2]


def cut_to_site(adapter: Adapter, site: SiteSection) -> Adapter:
    """Return the adapter at the site's rank in the modules it trains, unchanged in the others."""
    if site.rank == 0:
        return adapter
    small = truncate_to_rank(
        adapter, site.rank, lambda module: maths.delta(adapter, module)
    ).adapter
    left = untrained_modules(adapter, site)
    kept = {m for m in adapter.modules if m in left or len(adapter.a[m]) <= site.rank}
    return replace(
        adapter,
        a={m: adapter.a[m] if m in kept else small.a[m] for m in adapter.modules},
        b={m: adapter.b[m] if m in kept else small.b[m] for m in adapter.modules},
    )
