"""Look up plug-ins of six kinds by name: built-ins in one table, others through entry points.

Nothing in a configuration can name code to import: a name is looked up here, or among the entry
points (``fedwinnow.scorer``, ``fedwinnow.threshold``, …) of packages that the operator installed.
A name with a prefix (``flower:FedAdam``) is looked up where the table of prefixes says.
"""

import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from fedwinnow.curation.errors import PluginError
from fedwinnow.strategies.setting_types import check_types

Kind = Literal["scorer", "threshold", "ordering", "objective", "weighting", "merging"]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)

_SCORERS = "fedwinnow.strategies.scorers"
_THRESHOLDS = "fedwinnow.strategies.thresholds"

BUILT_IN: Mapping[Kind, Mapping[str, str]] = {
    "scorer": {
        name: f"{_SCORERS}.{name}:{name}"
        for name in (
            "calibrated",
            "clues",
            "clues_paper",
            "committee",
            "cosine",
            "datainf",
            "ifd",
            "ira",
            "length",
            "less",
            "llkd",
            "loss_drop",
            "perplexity",
            "representation",
            "tracin",
            "typicality",
            "uniform",
        )
    },
    "threshold": {
        name: f"{_THRESHOLDS}.{name}:{name}"
        for name in (
            "anchor_mean",
            "anchor_mean_minus_sd",
            "anchor_quantile",
            "budget",
            "fixed",
            "keep_all",
            "keep_fraction",
            "site_fraction",
            "target_recall",
        )
    },
    "ordering": {
        name: f"fedwinnow.strategies.orderings.{name}:{name}"
        for name in ("by_score", "decomposition", "easy_to_hard", "folding", "shuffled")
    },
    "objective": {
        name: f"fedwinnow.strategies.objectives.{name}:{name}"
        for name in ("adapt", "proximal", "sft", "weighted")
    },
    "weighting": {
        name: f"fedwinnow.strategies.weighting.{name}:{name}"
        for name in ("anchor_alignment", "mixing_law", "samples_kept", "tail_patch", "uniform")
    },
    "merging": {
        name: f"fedwinnow.strategies.merging.{name}:{name}"
        for name in (
            "alternate",
            "core_svd",
            "dare",
            "dare_ties",
            "fedavg_factors",
            "fedex",
            "fedsvd",
            "flora",
            "freeze_a",
            "knots",
            "linear",
            "sparse_sum",
            "stack",
            "ties",
        )
    },
}

PREFIXED: Mapping[tuple[Kind, str], str] = {
    ("merging", "flower"): "fedwinnow.strategies.merging.flower.rule:flower",
}
"""(kind, prefix) → a function from the rest of a name to a factory; loaded when first asked for."""


def plugin_names(kind: Kind) -> tuple[str, ...]:
    """Return all names of a kind, built-in and installed, sorted.

    Raises:
        PluginError: two packages, or a package and fedwinnow, claim one name.
    """
    return tuple(sorted(_table(kind)))


def plugin_factory(kind: Kind, name: str) -> Callable[..., Any]:
    """Return the factory of a plug-in.

    Raises:
        PluginError: no plug-in of this kind has the name, or it cannot be imported.
    """
    prefix, found, rest = name.partition(":")
    if found and (kind, prefix) in PREFIXED:
        return typing.cast("Callable[..., Any]", _load(kind, name, PREFIXED[kind, prefix])(rest))
    table = _table(kind)
    if name not in table:
        choices = [*sorted(table), *(f"{one}:…" for of, one in PREFIXED if of == kind)]
        message = f"{kind} {name!r} is unknown; choose one of {', '.join(choices)}"
        raise PluginError(message)
    return _load(kind, name, table[name])


def plugin_source(kind: Kind, name: str) -> str:
    """Return name and version of the package that a plug-in comes from.

    Raises:
        PluginError: no plug-in of this kind has the name.
    """
    for point in _installed(kind, entry_points):
        if point.name == name:
            return f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"
    if name in BUILT_IN[kind]:
        return "fedwinnow"
    prefix = name.partition(":")[0]
    if (kind, prefix) in PREFIXED:
        return prefix
    message = f"{kind} {name!r} is unknown; choose one of {', '.join(plugin_names(kind))}"
    raise PluginError(message)


def _load(kind: Kind, name: str, place: str) -> Callable[..., Any]:
    """Import ``module:attribute``; whatever its package raises becomes a PluginError."""
    module, _, attribute = place.partition(":")
    try:
        return typing.cast(
            "Callable[..., Any]",
            functools.reduce(getattr, attribute.split("."), importlib.import_module(module)),
        )
    except Exception as error:
        message = (
            f"{kind} {name!r}: {place} cannot be imported ({type(error).__name__}: {error}); "
            "reinstall its package"
        )
        raise PluginError(message) from error


def build(kind: Kind, name: str, settings: Mapping[str, Any]) -> Any:  # noqa: ANN401 - the Protocol depends on kind
    """Make a plug-in from its name and settings.

    Raises:
        PluginError: the name or a setting is unknown, or a setting has a wrong type or value.
    """
    make = plugin_factory(kind, name)
    known = inspect.signature(make).parameters
    for key in settings:
        if key not in known:
            choices = ", ".join(known) or "it has no settings"
            message = f"{kind} {name!r} has no setting {key!r}; choose from: {choices}"
            raise PluginError(message)
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in settings:
            message = f"{kind} {name!r} needs the setting {key!r}"
            raise PluginError(message)
    check_types(kind, name, make, settings)
    try:
        return make(**settings)
    except (TypeError, ValueError) as error:
        message = f"{kind} {name!r}: {error}"
        raise PluginError(message) from error


def _table(kind: Kind) -> dict[str, str]:
    table = dict(BUILT_IN[kind])
    for point in _installed(kind, entry_points):
        if point.name in table:
            message = (
                f"{kind} {point.name!r} is claimed twice: by {table[point.name]} and by "
                f"{point.value}; uninstall one of the packages"
            )
            raise PluginError(message)
        table[point.name] = point.value
    return table


@functools.cache
def _installed(kind: Kind, find: Callable[..., Iterable[EntryPoint]]) -> tuple[EntryPoint, ...]:
    """Return the entry points of a kind; cached, as reading is slow and packages stay the same."""
    return tuple(find(group=f"fedwinnow.{kind}"))
