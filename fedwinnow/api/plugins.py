"""Make plug-ins by name, list them, and hold one to the laws of its kind."""

from typing import Literal, TypeAlias, overload

from fedwinnow.curation.errors import PluginError
from fedwinnow.strategies import registry
from fedwinnow.strategies.conformance.check import assert_lawful
from fedwinnow.strategies.interfaces.merging import Merging, SparseMerging
from fedwinnow.strategies.interfaces.objective import Objective
from fedwinnow.strategies.interfaces.ordering import Ordering
from fedwinnow.strategies.interfaces.scorer import Scorer
from fedwinnow.strategies.interfaces.threshold import Threshold
from fedwinnow.strategies.interfaces.weighting import Weighting
from fedwinnow.strategies.plugin_description import Description, describe_all
from fedwinnow.strategies.registry import KINDS, Kind

__all__ = ["assert_lawful", "build", "plugins"]

Plugin: TypeAlias = Scorer | Threshold | Ordering | Objective | Weighting | Merging | SparseMerging


@overload
def build(kind: Literal["scorer"], name: str, /, **settings: object) -> Scorer: ...
@overload
def build(kind: Literal["threshold"], name: str, /, **settings: object) -> Threshold: ...
@overload
def build(kind: Literal["ordering"], name: str, /, **settings: object) -> Ordering: ...
@overload
def build(kind: Literal["objective"], name: str, /, **settings: object) -> Objective: ...
@overload
def build(kind: Literal["weighting"], name: str, /, **settings: object) -> Weighting: ...
@overload
def build(
    kind: Literal["merging"], name: str, /, **settings: object
) -> Merging | SparseMerging: ...
def build(kind: Kind, name: str, /, **settings: object) -> Plugin:
    """Make a plug-in from its name and settings.

    Args:
        kind: "scorer", "threshold", "ordering", "objective", "weighting" or "merging".
        name: As :func:`plugins` lists it.
        settings: By name, with the plug-in's own defaults, units and ranges.

    Returns:
        The plug-in, of its kind's Protocol (``strategies/interfaces/``).

    Raises:
        PluginError: the kind, the name or a setting is unknown, or a setting has a wrong type or
            value.
    """
    _check(kind)
    made: Plugin = registry.build(kind, name, settings)
    return made


def plugins(kind: Kind | None = None) -> tuple[Description, ...]:
    """Describe every plug-in, built-in and installed.

    Args:
        kind: Of this kind only; None for all.

    Returns:
        Name, settings with defaults and units, paper and package of each, by kind and name.

    Raises:
        PluginError: the kind is unknown, or two packages claim one name.
    """
    if kind is not None:
        _check(kind)
    return tuple(describe_all(kind))


def _check(kind: str) -> None:
    if kind not in KINDS:
        message = f"kind {kind!r} is unknown; choose one of {', '.join(KINDS)}"
        raise PluginError(message)
