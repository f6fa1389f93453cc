"""Warn a person about a run's configuration and outcome; nothing is refused.

Before the run: the learning-rate plan spans the rounds, so an order that the plan undoes is seen
here and not at a site. After it: sites that contributed nothing to the adapter, and a scorer that
cannot tell good samples from bad ones.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.errors import PluginError
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.server.state import RoundRecord
from fedwinnow.strategies.interfaces.ordering import Ordering
from fedwinnow.strategies.maths.order_schedule import choose_schedule, why_undone
from fedwinnow.strategies.registry import build

WEAK = 0.6
"""Forecast AUROC below which a selection is not worth much."""


def run_remarks(config: RunConfig) -> tuple[str, ...]:
    """Return warnings about a run's training: weights without effect, an order that is undone.

    An order is not checked where the server lacks the ordering's package.
    """
    if config.training.rounds == 0:
        return ()
    return (*_unweighed(config), *_undone(config))


def selection_warnings(
    scorer: str, forecast: Mapping[str, float], evidence: Mapping[str, float], *, kept_all: bool
) -> tuple[str, ...]:
    """Return warnings about what a selection is worth, and what to change.

    Args:
        scorer: Name of the scorer.
        forecast: How well it ranks the public anchors and their corruptions.
        evidence: What the threshold's decision stands on.
        kept_all: Whether nothing was dropped.
    """
    auroc, error = forecast.get("auroc"), forecast.get("auroc_se")
    spread = "" if error is None else f" ± {error:.3f}"
    found = "" if auroc is None else f" (forecast AUROC {auroc:.3f}{spread}; chance is 0.5)"
    cure = (
        "take more anchors, a larger model, other signals (run.trajectory = 'global') or another "
        "scorer.name"
    )
    inseparable = evidence.get("inseparable") or forecast.get("inseparable")
    if not inseparable and (auroc is None or auroc >= WEAK):
        return ()
    means = "what is dropped is little better than chance"
    if kept_all:
        means = "nothing is dropped, and that says nothing about the data's quality"
    tells = "cannot tell" if inseparable else "hardly tells"
    line = f"scorer {scorer} {tells} clean anchors from corrupted ones here{found}: {means}; {cure}"
    return (line,)


def _unweighed(config: RunConfig) -> tuple[str, ...]:
    rule, weighting = config.guards.rule, config.weighting.name
    if rule not in {"median", "trimmed_mean"} or weighting in {"samples_kept", "uniform"}:
        return ()
    why = (
        f"guards.rule = {rule!r} counts every site alike, so weighting.name = {weighting!r} "
        "changes nothing; set guards.rule to 'krum' or 'none' to have it weigh"
    )
    return (why,)


def _undone(config: RunConfig) -> tuple[str, ...]:
    section, name = config.training, config.training.ordering.name
    try:
        ordering: Ordering = build("ordering", name, section.ordering.settings)
    except PluginError:
        return ()  # sites need it, and say at join where they do not have it
    order = ordering(np.zeros(0), 0, ())
    schedule = choose_schedule(section.schedule, order.schedule_hint)
    why = why_undone(order, section.rounds * section.steps, schedule, section.warmup_share)
    return (why,) if why else ()


def sites_without_adapter(records: Iterable[RoundRecord]) -> tuple[str, ...]:
    """Return a warning for each site that answered training rounds and had no weight in them."""
    answered, empty = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for record in records:
        if record.phase != Phase.TRAIN.value:
            continue
        for site, part in record.sites.items():
            answered[record.arm, site] += 1
            empty[record.arm, site] += part.weight == 0.0
    return tuple(
        f"{site} gave no adapter in {number} of {answered[arm, site]} rounds of arm {arm}: it kept "
        "no samples, or fewer than its policy.smallest_group."
        for (arm, site), number in sorted(empty.items())
        if number
    )
