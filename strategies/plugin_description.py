"""Describe plug-ins from their own code: settings with units and defaults, paper, and package.

Nothing is kept by hand: settings and defaults come from the factory's signature, their units and
ranges from the ``Args`` section of its docstring, the paper from the ``Reference`` section of its
module or of the factory, the package from the entry point. Both Google's layout of docstrings
(fedwinnow's own) and numpy's (Flower's) are read.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fedwinnow.curation.errors import PluginError
from fedwinnow.strategies.registry import KINDS, Kind, plugin_factory, plugin_names, plugin_source

_LINK = re.compile(r"https?://[^\s>)\]]+|(?<=Paper: )\S+")
_HEAD = re.compile(r"^[A-Z][A-Za-z ]*:$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One keyword-only argument of a factory."""

    name: str
    default: object
    """Default in the signature; meaningless where ``required``."""
    required: bool
    about: str
    """Meaning, unit and range, from the docstring; "" where it says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """Description of a plug-in: package, summary, settings and paper."""

    kind: Kind
    name: str
    package: str
    about: str
    settings: tuple[Setting, ...] = ()
    paper: str = ""
    """Its reference in one line, or "control"."""
    broken: str = ""
    """Why it cannot be used; "" for a sound one."""


def describe(kind: Kind, name: str) -> Description:
    """Describe one plug-in; one that cannot be imported is described as broken.

    Raises:
        PluginError: no plug-in of this kind has the name.
    """
    package = plugin_source(kind, name)
    try:
        make = plugin_factory(kind, name)
        parameters = inspect.signature(make).parameters.values()
    except (PluginError, TypeError, ValueError) as error:
        return Description(kind=kind, name=name, package=package, about="", broken=str(error))
    module = inspect.getdoc(inspect.getmodule(make)) or ""
    own = inspect.getdoc(make) or ""
    if package == "flower":  # the module is ours; the words are those of Flower's class
        module = own
    said = arguments(own)
    return Description(
        kind=kind,
        name=name,
        package=package,
        about=_first(module) or _first(own),
        settings=tuple(
            Setting(
                name=one.name,
                default=one.default,
                required=one.default is inspect.Parameter.empty,
                about=said.get(one.name, ""),
            )
            for one in parameters
        ),
        paper=_paper(module, own),
    )


def describe_all(kind: Kind | None = None) -> Iterator[Description]:
    """Describe every plug-in of a kind, or of all, in the order of kinds and names."""
    for one in KINDS:
        if kind in (None, one):
            yield from (describe(one, name) for name in plugin_names(one))
        if one == "merging" and kind in (None, one):
            from fedwinnow.strategies.merging.flower.rule import flower_names  # noqa: PLC0415 - Flower loads here

            yield from (describe(one, f"flower:{name}") for name in flower_names())


def arguments(text: str) -> dict[str, str]:
    """Return what a docstring says of each argument, on one line each."""
    return _google(text) or _numpy(text)


def undescribed(make: Callable[..., Any]) -> tuple[str, ...]:
    """Return the settings of a factory that its docstring does not explain."""
    said = arguments(inspect.getdoc(make) or "")
    return tuple(name for name in inspect.signature(make).parameters if not said.get(name))


def _google(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    name = ""
    for line in _section(text, "Args"):
        match = re.match(r"^(\w+)(?: \([^)]*\))?: (.*)$", line)
        if match:
            name = match[1]
            found[name] = match[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def _numpy(text: str) -> dict[str, str]:
    _, found, rest = text.partition("Parameters\n----------\n")
    if not found:
        return {}
    said: dict[str, str] = {}
    name = ""
    lines = rest.split("\n")
    for place, line in enumerate(lines):
        if place + 1 < len(lines) and re.match(r"^-{3,}$", lines[place + 1]):
            break  # the next section
        match = re.match(r"^(\w+) ?: ", line)
        if match:
            name = match[1]
            said[name] = ""
        elif name and line.startswith(" "):
            said[name] = f"{said[name]} {line.strip()}".strip()
    return said


def _section(text: str, name: str) -> list[str]:
    """Return the lines of a Google section, without their first indentation."""
    lines = text.split("\n")
    if f"{name}:" not in lines:
        return []
    found = []
    for line in lines[lines.index(f"{name}:") + 1 :]:
        if _HEAD.match(line):
            break
        found.append(line)
    return inspect.cleandoc("\n".join(["", *found])).split("\n")


def _first(text: str) -> str:
    """Return the first paragraph on one line."""
    return " ".join(text.partition("\n\n")[0].split())


def _paper(*texts: str) -> str:
    """Return the first reference in the texts; else the first link; else "control"."""
    for text in texts:
        words = " ".join(" ".join(_section(text, "Reference")).split())
        if words:
            return words
    links = [link for text in texts for link in _LINK.findall(text)]
    return links[0] if links else "control"
