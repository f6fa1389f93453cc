"""Read TOML strictly: check every key, type and range; an error names the key and the file.

The shape of a file is a tree of frozen dataclasses; this module knows nothing about their meaning.

No decoding library: msgspec passes over a dataclass' unknown keys and takes NaN, cattrs reads "3",
2.0 and true as whole numbers; both would need a hook for every type, and errors of our own.
"""

import copy
import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomlkit
from tomlkit.items import Table

from fedwinnow.curation.errors import ConfigError

T = TypeVar("T")

OMIT_DEFAULT: Mapping[str, Any] = {"quiet": True}
"""Metadata of a field added later: canonical text leaves it out where it holds its default.

So a setting that a run does not use changes neither its id nor the terms that it sends.
"""


def renamed(old: str) -> Mapping[str, Any]:
    """Return the metadata of a field whose key was ``old``: that key is an error naming the new."""
    return {"was": old}


WORDS: Mapping[object, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
"""Names of types in errors."""


def require_setting(key: str, value: object, holds: bool, allowed: str) -> None:  # noqa: FBT001 - reads as a sentence: require key, value, condition
    """Raise a :class:`ConfigError` that names ``key`` unless ``holds``."""
    if not holds:
        message = f"{key} = {value!r} is out of range; allowed: {allowed}"
        raise ConfigError(message)


def load_toml(path: Path, cls: type[T], overrides: Sequence[str] = ()) -> T:
    """Read a TOML file into ``cls``, after applying ``section.key=value`` overrides.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, a value has the wrong type
            or is out of range.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        message = f"{path}: cannot be read ({why}); give the path of a TOML file"
        raise ConfigError(message) from error
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = f"{path}: not valid TOML: {error}"
        raise ConfigError(message) from error
    try:
        return parse(with_overrides(tree, overrides), cls)
    except ConfigError as error:
        message = f"{path}: {error}"
        raise ConfigError(message) from error


def with_overrides(
    tree: Mapping[str, Any], overrides: Sequence[str], *, form: str = "section.key=value"
) -> dict[str, Any]:
    """Return a copy of the tree with ``section.key=value`` lines applied; ``form`` is for errors.

    Raises:
        ConfigError: a line is not of that form, or names something that is no section.
    """
    changed = copy.deepcopy(dict(tree))
    for override in overrides:
        _apply(changed, override, form)
    return changed


def parse(tree: Mapping[str, Any], cls: type[T], prefix: str = "") -> T:
    """Turn a tree of plain values into a dataclass, strictly."""
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # cls is a dataclass by contract
    for key in tree:
        if key not in known:
            now = [f.name for f in known.values() if f.metadata.get("was") == key]
            if now:
                message = f"key {prefix}{key} is now called {prefix}{now[0]}; rename it"
                raise ConfigError(message)
            message = f"unknown key {prefix}{key}; allowed here: {', '.join(sorted(known))}"
            raise ConfigError(message)
    values = {}
    for name, f in known.items():
        if name in tree:
            given = _completed(tree[name], f)
            values[name] = _value(given, hints[name], f"{prefix}{name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            message = f"missing key {prefix}{name}; add it"
            raise ConfigError(message)
    return cls(**values)


def _completed(value: Any, field: dataclasses.Field[Any]) -> Any:  # noqa: ANN401 - a tree of TOML
    """Fill a table's missing required keys from the field's own default.

    So ``[threshold.settings]`` alone means the default rule with these settings.
    """
    if field.default_factory is dataclasses.MISSING or not isinstance(value, Mapping):
        return value
    default = field.default_factory()
    if not dataclasses.is_dataclass(default) or isinstance(default, type):
        return value
    needed = {
        f.name: getattr(default, f.name)
        for f in dataclasses.fields(default)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    return {**to_plain(needed), **value}


def canonical_json(node: object) -> str:
    """Return a dataclass as JSON text with sorted keys: equal settings, equal text."""
    return json.dumps(
        _without_defaults(node), sort_keys=True, ensure_ascii=False, separators=(",", ":")
    )


def to_plain(node: object) -> Any:  # noqa: ANN401 - a tree of whatever JSON holds
    """Return a dataclass tree as dicts, lists and scalars."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return {f.name: to_plain(getattr(node, f.name)) for f in dataclasses.fields(node)}
    if isinstance(node, Mapping):
        return {str(key): to_plain(value) for key, value in node.items()}
    if isinstance(node, tuple | list):
        return [to_plain(item) for item in node]
    return node


def _without_defaults(node: object) -> Any:  # noqa: ANN401 - a tree of whatever JSON holds
    """Convert like :func:`to_plain`, without ``OMIT_DEFAULT`` fields that hold their default."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        values = {f: getattr(node, f.name) for f in dataclasses.fields(node)}
        said = {
            f.name: v
            for f, v in values.items()
            if not (f.metadata == OMIT_DEFAULT and v == _default(f))
        }
        return {name: _without_defaults(value) for name, value in said.items()}
    if isinstance(node, Mapping):
        return {str(key): _without_defaults(value) for key, value in node.items()}
    if isinstance(node, tuple | list):
        return [_without_defaults(item) for item in node]
    return node


def _default(field: dataclasses.Field[Any]) -> Any:  # noqa: ANN401 - whatever the field holds
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def to_toml(node: object, comments: Mapping[str, str] | None = None) -> str:
    """Return a dataclass tree as TOML text; ``comments`` maps dotted keys to the line above each.

    Empty tables are left out: reading gives them back as the default.
    """
    document = tomlkit.document()
    _fill(document, to_plain(node), "", comments or {})
    return tomlkit.dumps(document).strip() + "\n"


def _apply(tree: dict[str, Any], override: str, form: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        message = f"--set {override!r}: expected {form}"
        raise ConfigError(message)
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if text.strip()[:1] in {'"', "'"}:
            message = (
                f"--set {override!r}: {text} is no text of TOML ({error}); a text with backslashes "
                "stands in single quotes"
            )
            raise ConfigError(message) from error
        value = text  # a bare word is a string
    *sections, last = key.strip().split(".")
    node: Any = tree
    for section in sections:
        if isinstance(node, list) and section.isdigit() and int(section) < len(node):
            node = node[int(section)]
        elif isinstance(node, dict):
            node = node.setdefault(section, {})
        else:
            message = f"--set {override!r}: {section!r} is not a section of the file"
            raise ConfigError(message)
    if not isinstance(node, dict):
        message = f"--set {override!r}: {key!r} names no key of a section"
        raise ConfigError(message)
    node[last] = value


def _wrong(key: str, expected: str, value: object) -> ConfigError:
    return ConfigError(f"{key}: expected {expected}, got {value!r}")


def _value(value: Any, hint: Any, key: str) -> Any:  # noqa: ANN401 - one branch a type
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise _wrong(key, "a table", value)
        return parse(value, typing.cast("type[Any]", hint), f"{key}.")
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise _wrong(key, "one of " + ", ".join(map(repr, typing.get_args(hint))), value)
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(key, f"a list, such as [{value!r}]", value)
        (item, *_) = typing.get_args(hint)
        return tuple(_value(v, item, f"{key}.{i}") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(key, "a table", value)
        return {name: _free(item, f"{key}.{name}") for name, item in value.items()}
    if origin in {typing.Union, types.UnionType}:  # pragma: no cover - no such field today
        message = f"{key}: unions are not supported in settings"
        raise TypeError(message)
    return _plain_value(value, hint, key)


def _plain_value(value: Any, hint: Any, key: str) -> Any:  # noqa: ANN401 - a text, a number, a truth value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _wrong(
            key,
            WORDS.get(hint, str(hint)),
            value,
        )
    if hint is float and value not in {float("inf"), float("-inf")} and value != value:  # noqa: PLR0124 - NaN is the one number unequal to itself
        raise _wrong(key, "a number", value)
    return value


def _free(value: Any, key: str) -> Any:  # noqa: ANN401 - whatever a plug-in may take
    """Return a plug-in's setting, checked to fit TOML and JSON both: no date, no NaN."""
    if isinstance(value, Mapping):
        return {name: _free(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_free(item, f"{key}.{i}") for i, item in enumerate(value)]
    if not isinstance(value, str | int | float) or value != value:  # noqa: PLR0124 - refuses NaN
        raise _wrong(key, "a text, a number, true or false, a list or a table", value)
    return value


def _fill(
    table: tomlkit.TOMLDocument | Table,
    tree: Mapping[str, Any],
    prefix: str,
    comments: Mapping[str, str],
) -> None:
    """Put a tree into a TOML table: plain keys first, then tables, then arrays of tables."""
    tables = {k: v for k, v in tree.items() if isinstance(v, Mapping)}
    arrays = {k: v for k, v in tree.items() if _is_array_of_tables(v)}
    for key, value in tree.items():
        if key in tables or key in arrays:
            continue
        if comment := comments.get(f"{prefix}{key}"):
            table.add(tomlkit.comment(comment))
        table.add(key, tomlkit.item(value))
    for key, value in tables.items():
        if value:
            table.add(key, _table(value, f"{prefix}{key}.", comments))
    for key, items in arrays.items():
        array = tomlkit.aot()
        for item in items:
            array.append(_table(item, f"{prefix}{key}.", comments))
        table.add(key, array)


def _is_array_of_tables(value: object) -> bool:
    return (
        isinstance(value, list) and value != [] and all(isinstance(item, Mapping) for item in value)
    )


def _table(tree: Mapping[str, Any], prefix: str, comments: Mapping[str, str]) -> Table:
    table = tomlkit.table(is_super_table=False)
    _fill(table, tree, prefix, comments)
    return table
