"""Check before a run that its plug-ins can be built, and fit its rounds and sites.

So a wrong setting costs nothing: no site is asked, nothing is trained.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.errors import ConfigError
from fedwinnow.server.aggregation.round_merge import check_merging
from fedwinnow.strategies.registry import Kind, build, plugin_names
from fedwinnow.strategies.run_plugins import FEWEST, MergePlugins
from fedwinnow.strategies.terms_check import check_teacher, check_terms


@runtime_checkable
class CountingMerging(Protocol):
    """Merging rule that needs a minimum number of sites."""

    fewest: int
    """Sites that it needs, at least 1."""


def check_plan(config: RunConfig) -> None:
    """Build every plug-in of a run that is installed here, and check the rule's rounds and sites.

    A scorer, ordering or objective that only the sites have installed is left to them: they check
    it when they join.

    Raises:
        ConfigError: the rule needs more rounds than the run has, more sites, or sites of one rank.
        PluginError: a plug-in or a setting is unknown or wrong, or the rule, the weighting and the
            guards do not go together.
    """
    of_sites: Mapping[Kind, Any] = {
        "scorer": config.scorer,
        "ordering": config.training.ordering,
        "objective": config.training.objective,
    }
    for kind, section in of_sites.items():
        if section.name in plugin_names(kind):
            build(kind, section.name, section.settings)
    build("threshold", config.threshold.name, config.threshold.settings)
    plugins = MergePlugins.of(config)
    check_merging(config, plugins)
    _check_rounds_and_sites(config, plugins)


def _check_rounds_and_sites(config: RunConfig, plugins: MergePlugins) -> None:
    training, rule = config.training, plugins.factor_merging
    if training.rounds == 1 and rule and rule.trains(0) != rule.trains(1):
        message = (
            f"training.rounds = 1: merging.name = {config.merging.name!r} trains the factors in "
            "turn and needs at least 2 rounds; raise training.rounds, or set merging.name = "
            "'freeze_a' or 'core_svd'"
        )
        raise ConfigError(message)
    small = [site for site in config.sites if 0 < site.rank < config.adapter.rank]
    if small and rule:
        message = (
            f"sites.rank = {small[0].rank} of site {small[0].name!r}: merging.name = "
            f"{config.merging.name!r} has all sites share a factor, which has one rank; set "
            "sites.rank = 0, or choose a rule that takes unequal ranks, such as 'core_svd'"
        )
        raise ConfigError(message)
    sites = len(config.sites) or len(config.members)
    counting = plugins.merging
    if isinstance(counting, CountingMerging) and 0 < sites < counting.fewest:
        named = ", ".join(f"merging.settings.{key}" for key in config.merging.settings)
        message = (
            f"merging.name = {config.merging.name!r} with {dict(config.merging.settings)} needs at "
            f"least {counting.fewest} sites, and the run has {sites}; take more sites, "
            f"{f'change {named}, ' if named else ''}or choose another merging.name"
        )
        raise ConfigError(message)


def check_config(config: RunConfig) -> None:
    """Check a scenario's plug-ins and planted truth, so that an error is found at once.

    Raises:
        ConfigError: ``study.truth`` names a label that a site does not carry, or the merging rule
            needs more rounds or sites.
        PluginError: a plug-in or a setting is unknown, or does not fit the trajectory.
    """
    plugins = check_terms(config.terms())
    check_teacher(plugins, config.teacher)
    reader = plugins.reviews_reader
    if reader and len(config.sites) < FEWEST:
        message = (
            f"{reader} needs reviewers from at least {FEWEST} sites, and the scenario has "
            f"{len(config.sites)}; add [[sites]] or choose another scorer"
        )
        raise ConfigError(message)
    for site in config.sites:
        if config.study.truth and config.study.truth not in site.columns.labels:
            message = (
                f"study.truth = {config.study.truth!r}: site {site.name} does not carry this label "
                f"(sites.columns.labels = {list(site.columns.labels)}); add the column there"
            )
            raise ConfigError(message)
    check_plan(config)
