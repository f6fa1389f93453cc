"""Read a JSON tree into frozen dataclasses, driven by their type annotations.

A field is a dataclass, a text, a number, a truth value, ``tuple[X, ...]``, ``Mapping[str, X]`` or
``X | None``. A number that JSON cannot hold is written as a word: "inf", "-inf" or "nan". A key
without a field is left out, so that a file of a later version can be read.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from fedwinnow.curation.errors import DataError

T = TypeVar("T")

_WORDS: Mapping[object, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
_NON_FINITE = frozenset({"inf", "-inf", "nan"})


def parse_tree(tree: object, cls: type[T], key: str = "") -> T:
    """Parse a JSON tree into a dataclass.

    Args:
        tree: The result of ``json.loads``.
        cls: A dataclass.
        key: Dotted path of the tree in its file, for errors; "" is the whole file.

    Raises:
        DataError: a key is missing or holds another type; names the key, what was expected and
            what came.
    """
    if not isinstance(tree, Mapping):
        raise _wrong(key, "an object", tree)
    hints = typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # cls is a dataclass by contract
        path = f"{key}.{field.name}" if key else field.name
        if field.name in tree:
            values[field.name] = _value(tree[field.name], hints[field.name], path)
        elif field.default is field.default_factory is dataclasses.MISSING:
            message = f"{path}: expected this key, got none"
            raise DataError(message)
    return cls(**values)


def _value(value: Any, hint: Any, key: str) -> Any:  # noqa: ANN401 - one branch a type
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return parse_tree(value, typing.cast("type[Any]", hint), key)
    if origin in {typing.Union, types.UnionType}:
        (other,) = (item for item in inner if item is not type(None))
        return None if value is None else _value(value, other, key)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(key, "a list", value)
        return tuple(_value(item, inner[0], f"{key}.{i}") for i, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise _wrong(key, "an object", value)
        return {name: _value(item, inner[1], f"{key}.{name}") for name, item in value.items()}
    return _scalar(value, hint, key)


def _scalar(value: Any, hint: Any, key: str) -> Any:  # noqa: ANN401 - a text, a number, a truth value
    if hint is type(None) and value is None:
        return None
    if hint is float and value in _NON_FINITE:
        return float(value)
    if isinstance(value, bool) != (hint is bool):
        raise _wrong(key, _WORDS.get(hint, "null"), value)
    if hint is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, hint):
        raise _wrong(key, _WORDS.get(hint, "null"), value)
    return value


def _wrong(key: str, expected: str, value: object) -> DataError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."  # noqa: PLR2004 - one line of a terminal
    return DataError(f"{key or 'the file'}: expected {expected}, got {shown}")
