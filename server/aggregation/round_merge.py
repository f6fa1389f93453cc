"""Merge the sites' adapters of a round: weights, guards, merging rule, change of the base.

Warm-up is merged by ``core_svd`` whatever the run's rule: it exists for measuring, which needs one
adapter of the agreed rank on the unchanged base.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters.algebra import balance_factors
from fedwinnow.curation.config.coordinator import GuardsSection
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import EmptySelectionError, PluginError, ProtocolError
from fedwinnow.curation.model.base_change import add_change, changed_base_hash
from fedwinnow.server.aggregation.update_guards import bound_norms, cap_weights, krum, robust_middle
from fedwinnow.strategies.interfaces.merging import (
    Memory,
    Merged,
    SparseMerging,
    merge_with_memory,
)
from fedwinnow.strategies.interfaces.weighting import (
    AligningWeighting,
    Effect,
    JudgedWeighting,
    Weighting,
)
from fedwinnow.strategies.registry import build
from fedwinnow.strategies.run_plugins import MergePlugins

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundMerge:
    """Result of a round's merge."""

    adapter: Adapter
    change: Adapter | None
    """Sum of all that was added to the base so far; None: nothing."""
    weights: Mapping[str, float]
    """Site → share, 0 where it was left out."""
    report: Mapping[str, float]
    bounded: Mapping[str, str] = field(default_factory=dict)
    """Site → guards that changed its contribution, and why."""
    memory: Memory = field(default_factory=dict)
    """State of the rule for the next round of the arm."""


def merge_plain(
    adapters: Mapping[str, Adapter],
    counts: Mapping[str, int],
    previous: Adapter,
    config: RunConfig,
    memory: Memory,
) -> tuple[Merged, Memory]:
    """Weigh and merge on an unchanged base, for an ordinary Flower app.

    Raises:
        IncompatibleAdapterError: adapters do not belong together.
        ProtocolError: the merge has a change of the base, which would be lost.
    """
    plugins = MergePlugins.of(config)
    weights = _weights(plugins.weighting, counts, None)
    merged, memory = merge_with_memory(plugins.merging, adapters, weights, previous, memory)
    if merged.change is not None:
        message = (
            f"merging.name = {config.merging.name!r}: expected a rule that leaves the base as "
            f"it is, got a change of {len(merged.change.a)} of its modules; start the whole "
            "protocol, or choose another rule, such as 'core_svd'"
        )
        raise ProtocolError(message)
    return merged, memory


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEvidence:
    """Evidence on a round's adapters beside their factors and counts."""

    left_out: Mapping[str, str] = field(default_factory=dict)
    """Site → why the judges left its adapter out."""
    alignments: Mapping[str, float] = field(default_factory=dict)
    """Site → drop of the anchors' loss by its update to first order, nats."""
    effects: Mapping[str, Mapping[str, Effect]] = field(default_factory=dict)
    """Site → domain of anchors → effect of its adapter on their loss, as the judges measured it."""
    before: Mapping[str, float] = field(default_factory=dict)
    """Site → weight in the arm's previous round."""


def merge_round(
    adapters: Mapping[str, Adapter],
    counts: Mapping[str, int],
    previous: Adapter,
    change: Adapter | None,
    config: RunConfig,
    *,
    warm_up: bool = False,
    seen: RoundEvidence | None = None,
    memory: Memory | None = None,
) -> RoundMerge:
    """Weigh, guard and merge the adapters of a round.

    Args:
        adapters: Site → adapter of this round.
        counts: Site → samples that it trained on, as it reported them.
        previous: The adapter that the sites started from.
        change: Change of the base so far.
        config: Configuration of the run; guards are not applied in warm-up.
        warm_up: Whether this is a warm-up round.
        seen: Other evidence on the adapters; the weighting does not read it in warm-up.
        memory: State of the rule after the arm's earlier rounds.

    Raises:
        ConfigError: too few sites for the guard's rule.
        EmptySelectionError: no site is left.
        IncompatibleAdapterError: adapters do not belong together.
    """
    seen = seen or RoundEvidence()
    bounded = dict(seen.left_out)
    there = [site for site in adapters if site not in bounded]
    used: Mapping[str, Adapter] = {site: complete_rank(adapters[site], previous) for site in there}
    if not used:
        raise _nobody_left(bounded)
    told = {site: counts[site] for site in used}
    plugins = MergePlugins.of(config)
    weights = _weights(plugins.weighting, told, None if warm_up else seen)
    rule = build("merging", "core_svd", {}) if warm_up else plugins.merging
    if not warm_up:
        liars = _liars_among(len(used), config.guards, judged=len(bounded))
        used, weights, words = apply_guards(used, weights, previous, config.guards, liars=liars)
        bounded = _joined(bounded, words)
    shares = {site: float(weights.get(site, 0.0)) for site in adapters}
    if "" in used:  # the guards replaced all adapters by one middle
        shares = {site: 1 / len(told) if site in told else 0.0 for site in adapters}
    for site, why in sorted(bounded.items()):
        logger.warning("guards: site %s: %s", site, why)
    merged, memory = merge_with_memory(rule, used, weights, previous, memory or {})
    adapter, whole = _based(merged, change, previous)
    return RoundMerge(
        adapter=adapter,
        change=whole,
        weights=shares,
        report=merged.report,
        bounded=bounded,
        memory=memory,
    )


def _nobody_left(words: Mapping[str, str]) -> EmptySelectionError:
    reasons = "; ".join(f"{site}: {why}" for site, why in sorted(words.items()))
    message = (
        f"merging: every adapter of the round was left out ({reasons}); raise "
        "guards.anchor_margin or lower training.learning_rate"
    )
    return EmptySelectionError(message)


def check_merging(config: RunConfig, plugins: MergePlugins) -> None:
    """Refuse a merging rule or weighting that does not fit what the run trains, or its guards.

    Raises:
        PluginError: the rule is unknown, merges sparse differences, or needs a factor that the
            guards' rule would make anew; the weighting needs judges, and there are none.
    """
    name = config.merging.name
    if isinstance(plugins.merging, SparseMerging):
        message = (
            f"merging.name = {name!r} merges sparse differences, and a run trains LoRA adapters; "
            "use it with `fedwinnow merge`, or choose core_svd"
        )
        raise PluginError(message)
    if plugins.reads_judgements and config.guards.anchor_margin == 0:
        message = (
            f"weighting.name = {config.weighting.name!r} reads what the other sites measure of "
            "each adapter; set guards.anchor_margin (a large one leaves nobody out)"
        )
        raise PluginError(message)
    if plugins.factor_merging and config.guards.rule in {"median", "trimmed_mean"}:
        message = (
            f"guards.rule = {config.guards.rule!r} makes both factors anew, and merging.name = "
            f"{name!r} needs one that all sites share; set guards.rule to 'krum' or 'none'"
        )
        raise PluginError(message)


def _weights(
    weighting: Weighting, counts: Mapping[str, int], seen: RoundEvidence | None
) -> Mapping[str, float]:
    """Return weights by counts alone, or also by what was seen, where the weighting reads it."""
    if seen is not None and isinstance(weighting, AligningWeighting):
        return weighting.align(counts, seen.alignments, seen.before)
    if seen is not None and isinstance(weighting, JudgedWeighting):
        return weighting.rate(counts, seen.effects)
    return weighting(counts)


def _based(
    merged: Merged, change: Adapter | None, previous: Adapter
) -> tuple[Adapter, Adapter | None]:
    """Return the merged adapter with the hash of its base, and the whole change of that base."""
    if merged.change is None:
        return merged.adapter, change
    base = change.base if change is not None else previous.base
    whole = add_change(change, replace(merged.change, base=base))
    return replace(merged.adapter, base=changed_base_hash(base, whole)), whole


def _liars_among(sites: int, guards: GuardsSection, *, judged: int) -> int:
    """Return the number of liars that the guards' rule assumes.

    Where the judges left a site out, it is as many of ``guards.liars`` as the remaining sites
    allow, so that the judgement does not end the round.
    """
    if judged == 0:
        return guards.liars
    most = (sites - 3) // 2 if guards.rule == "krum" else (sites - 1) // 2
    return max(0, min(guards.liars, most))


def complete_rank(adapter: Adapter, previous: Adapter) -> Adapter:
    """Add to a smaller-rank site's adapter the previous adapter's directions it was not sent.

    Such a site trained from the first directions of ΔW = U Σ Vᵀ. With the others added back, its
    adapter votes to leave them as they are, instead of voting them away.
    """
    a, b = dict(adapter.a), dict(adapter.b)
    for module in adapter.modules:
        rank = len(adapter.a[module])
        if rank >= len(previous.a[module]):
            continue
        spectrum = maths.decompose(maths.delta(previous, module))
        right, left = balance_factors(spectrum, adapter, module, slice(rank, None))
        a[module] = torch.cat([adapter.a[module], right])
        b[module] = torch.cat([adapter.b[module], left], dim=1)
    return replace(adapter, a=a, b=b)


def apply_guards(
    adapters: Mapping[str, Adapter],
    weights: Mapping[str, float],
    previous: Adapter,
    guards: GuardsSection,
    *,
    liars: int,
) -> tuple[Mapping[str, Adapter], Mapping[str, float], Mapping[str, str]]:
    """Return adapters and weights after Krum, norm bound, weight cap, middle; and site → reasons.

    A middle of all sites is one adapter under the name "".
    """
    words: Mapping[str, str] = {}
    if guards.rule == "krum" and liars > 0:
        stay, words = krum(adapters, previous, liars=liars)
        adapters = {site: adapters[site] for site in stay}
        total = sum(weights.get(site, 0.0) for site in stay)
        weights = {site: weights.get(site, 0.0) / total for site in stay}
    if guards.norm > 0:
        adapters, shortened = bound_norms(adapters, previous, most=guards.norm)
        words = _joined(words, shortened)
    if guards.weight < 1:
        weights, cut = cap_weights(weights, most=guards.weight)
        words = _joined(words, cut)
    if guards.rule in {"median", "trimmed_mean"}:
        centre = robust_middle(adapters, previous, kind=guards.rule, liars=liars)
        adapters, weights = {"": centre}, {"": 1.0}
    return adapters, weights, words


def _joined(words: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """Return site → its words in both mappings, joined in one sentence."""
    return {
        site: "; ".join(filter(None, (words.get(site), more.get(site))))
        for site in (*words, *(site for site in more if site not in words))
    }
