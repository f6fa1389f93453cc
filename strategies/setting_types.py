"""Check a plug-in's settings against the types in its factory's signature.

Known types are int, float (a whole number will do, true and false will not), str, bool, lists and
tables of these, ``Literal``, and unions, also with None. A setting without an annotation, or with
another one, is left to the factory; so are ranges, infinities among them.

No library does this: beartype takes true for a whole number, NaN for a number, and checks one item
of a list.
"""

import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedwinnow.curation.config.strict_toml import WORDS
from fedwinnow.curation.errors import PluginError

_UNIONS = (typing.Union, types.UnionType)
_LISTS = (list, tuple, Sequence)


def signature(make: Callable[..., Any]) -> inspect.Signature:
    """Return the factory's signature, its annotations evaluated where their names are known."""
    try:
        return inspect.signature(make, eval_str=True)
    except (NameError, AttributeError, SyntaxError, TypeError):
        return inspect.signature(make)


def check_types(
    kind: str, name: str, make: Callable[..., Any], settings: Mapping[str, object]
) -> None:
    """Refuse settings of another type than the factory asks for.

    Raises:
        PluginError: naming kind, plug-in, setting, the type that was expected, and what came.
    """
    parameters = signature(make).parameters
    for key, value in settings.items():
        hint = parameters[key].annotation
        if not _fits(value, hint):
            message = f"{kind} {name!r}: setting {key!r}: expected {_words(hint)}, got {value!r}"
            raise PluginError(message)


def _fits(value: object, hint: Any) -> bool:  # noqa: ANN401, PLR0911 - an annotation; one return a type
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in WORDS:
        return _scalar(value, hint)
    if hint in {None, type(None)}:
        return value is None
    if origin is typing.Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    if origin in _UNIONS:
        return any(_fits(value, one) for one in inner)
    if origin in _LISTS:
        return isinstance(value, Sequence) and not isinstance(value, str) and _items(value, hint)
    if origin in {dict, Mapping}:
        return isinstance(value, Mapping) and all(_fits(v, inner[1]) for v in value.values())
    return True  # no annotation, or none that is known here


def _scalar(value: object, hint: type) -> bool:
    if hint in {bool, str} or isinstance(value, bool):
        return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    if hint is int:
        return isinstance(value, numbers.Integral)
    return isinstance(value, numbers.Real) and not math.isnan(value)


def _items(values: Sequence[object], hint: Any) -> bool:  # noqa: ANN401 - an annotation
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and inner[-1] is not Ellipsis:
        pairs = zip(values, inner, strict=False)
        return len(values) == len(inner) and all(_fits(value, one) for value, one in pairs)
    return all(_fits(value, inner[0]) for value in values)


def _words(hint: Any) -> str:  # noqa: ANN401 - an annotation
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in WORDS:
        return WORDS[hint]
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin in _UNIONS:
        return " or ".join(_words(one) for one in inner)
    if origin in _LISTS:
        parts = [_words(one) for one in inner if one is not Ellipsis]
        return "a list of " + ", ".join(parts)
    if origin in {dict, Mapping}:
        return f"a table of {_words(inner[1])}" if inner[1] is not Any else "a table"
    return "nothing" if hint in {None, type(None)} else str(hint)
