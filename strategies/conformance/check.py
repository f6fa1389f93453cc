"""Check a plug-in by the laws of its kind: for authors, before a federation relies on it.

``fedwinnow plugins check NAME`` prints the verdicts; an author's own test calls

    from fedwinnow.strategies.conformance.check import assert_lawful
    assert_lawful("scorer", my_scorer, bound=2.0)

Laws are of two sorts: those that the protocol relies on (required), and those that are usual of the
kind but that some rules break knowingly (``strict`` demands these, too).
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fedwinnow.strategies import interfaces
from fedwinnow.strategies.conformance import (
    merging_laws,
    objective_laws,
    ordering_laws,
    scorer_laws,
    sparse_merging_laws,
    threshold_laws,
    weighting_laws,
)
from fedwinnow.strategies.conformance.law import Law, Make, Verdict, judge
from fedwinnow.strategies.registry import Kind, build, plugin_factory

LAWS: Mapping[Kind, tuple[Law, ...]] = {
    "scorer": scorer_laws.LAWS,
    "threshold": threshold_laws.LAWS,
    "ordering": ordering_laws.LAWS,
    "objective": objective_laws.LAWS,
    "weighting": weighting_laws.LAWS,
    "merging": merging_laws.LAWS,
}


def check_registered(kind: Kind, name: str, settings: Mapping[str, Any]) -> tuple[Verdict, ...]:
    """Return the verdict of every law on a plug-in that the registry knows.

    Raises:
        PluginError: the name or a setting is unknown, or the plug-in cannot be imported.
    """
    build(kind, name, settings)  # an unknown name or a wrong setting is an error, not a verdict
    return check_factory(kind, plugin_factory(kind, name), settings)


def check_factory(
    kind: Kind, make: Callable[..., Any], settings: Mapping[str, Any]
) -> tuple[Verdict, ...]:
    """Return the verdict of every law on what a factory makes of these settings."""

    def anew() -> object:
        return make(**settings)

    laws, protocol = LAWS[kind], kind.capitalize()
    if isinstance(make(**settings), interfaces.SparseMerging):
        laws, protocol = sparse_merging_laws.LAWS, "SparseMerging"
    first = (
        Law(says="its settings are keyword-only", check=lambda _: _keywords(make)),
        Law(says=f"it is a {protocol}", check=lambda made: _fits(protocol, made)),
        Law(says="it names its source, or says control", check=lambda _: _sourced(make)),
        Law(says="every setting is explained", check=lambda _: _explained(make), required=False),
    )
    return tuple(judge(law, anew) for law in (*first, *laws))


def assert_lawful(
    kind: Kind,
    make: Callable[..., Any],
    *,
    strict: bool = False,
    **settings: Any,  # noqa: ANN401 - whatever the factory takes
) -> None:
    """Fail with every broken law of a plug-in; for the author's own tests.

    Args:
        kind: "scorer", "threshold", "ordering", "objective", "weighting" or "merging".
        make: The plug-in's factory.
        strict: What is only usual of the kind must hold too.
        settings: Of the factory, by name.

    Raises:
        AssertionError: a required law is broken, or with ``strict`` any law.
    """
    broken = [
        f"{one.law}: {one.found}"
        for one in check_factory(kind, make, settings)
        if not one.holds and (one.required or strict)
    ]
    if broken:
        raise AssertionError("\n".join(broken))


def _keywords(make: Callable[..., Any]) -> str:
    other = [
        one.name
        for one in inspect.signature(make).parameters.values()
        if one.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    return f"{', '.join(other)} can be given by place; write * before" if other else ""


def _fits(name: str, made: Make) -> str:
    protocol = getattr(interfaces, name)
    return "" if isinstance(made(), protocol) else f"{type(made()).__name__} lacks a part of it"


def _sourced(make: Callable[..., Any]) -> str:
    text = (inspect.getdoc(inspect.getmodule(make)) or "") + (inspect.getdoc(make) or "")
    named = "http" in text or "control" in text.lower()
    return "" if named else "neither its module's documentation nor its own has a link"


def _explained(make: Callable[..., Any]) -> str:
    from fedwinnow.strategies.plugin_description import undescribed  # noqa: PLC0415 - it is only words

    missing = undescribed(make)
    return f"no word on {', '.join(missing)} under Args" if missing else ""
