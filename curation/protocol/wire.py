"""Encode messages and states as a text and named arrays, and back: typed, checked, no code.

A dataclass tree becomes JSON, where each array leaf is a reference ``{"array", "dtype", "shape"}``
to a named array. Decoding is driven by the type annotations of the expected class: nothing but the
declared dataclasses, numbers, texts and arrays can come out of it, whatever was sent. bfloat16
travels as uint16 under its recorded dtype. A NaN or an infinity in an array is refused by name.

No decoding library: msgspec knows no arrays with shapes, passes over unknown fields of a dataclass,
takes NaN, and sends an infinity as null.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import AbstractArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from fedwinnow.curation.errors import NonFiniteError, ProtocolError
from fedwinnow.curation.protocol import messages
from fedwinnow.curation.protocol.phases import Phase

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]
N = TypeVar("N")

_MESSAGES: Mapping[str, type] = {
    cls.__name__: cls for cls in typing.get_args(messages.Request) + typing.get_args(messages.Reply)
}
_NON_FINITE = {"inf": float("inf"), "-inf": float("-inf")}


def to_arrays(message: messages.Message) -> tuple[str, Arrays]:
    """Encode a message as a text and named arrays.

    Raises:
        NonFiniteError: an array holds a NaN or an infinity, or a number is NaN.
    """
    text, arrays = pack(message)
    return json.dumps({"kind": type(message).__name__, "body": json.loads(text)}), arrays


def from_arrays(text: str, arrays: Mapping[str, Any]) -> messages.Message:
    """Decode the message that :func:`to_arrays` encoded.

    Raises:
        ProtocolError: unknown kind, missing or additional field or array, wrong type or shape.
        NonFiniteError: an array holds a NaN or an infinity.
    """
    envelope = _parse(text)
    if not isinstance(envelope, dict) or set(envelope) != {"kind", "body"}:
        message = "message must be an object with the keys kind and body"
        raise ProtocolError(message)
    cls = _MESSAGES.get(str(envelope["kind"]))
    if cls is None:
        message = f"message kind {envelope['kind']!r} is unknown; known: {', '.join(_MESSAGES)}"
        raise ProtocolError(message)
    return typing.cast("messages.Message", _unpack(envelope["body"], arrays, cls))


def encode(message: messages.Message) -> bytes:
    """Encode a message as bytes: safetensors with the text in the header."""
    text, arrays = to_arrays(message)
    return save_arrays(arrays, metadata={"message": text})


def decode(data: bytes) -> messages.Message:
    """Decode the message that :func:`encode` wrote.

    Raises:
        ProtocolError: the bytes are cut short or not a message.
    """
    text, arrays = _open(data)
    return from_arrays(text, arrays)


def dump(node: object) -> bytes:
    """Encode any dataclass of ours as bytes (committed states)."""
    text, arrays = pack(node)
    return save_arrays(arrays, metadata={"message": text})


def restore(data: bytes, cls: type[N]) -> N:
    """Decode the dataclass that :func:`dump` wrote.

    Raises:
        ProtocolError: the bytes are cut short or hold another class.
    """
    text, arrays = _open(data)
    return typing.cast("N", _unpack(_parse(text), arrays, cls))


def pack(node: object) -> tuple[str, Arrays]:
    """Return the JSON text and the arrays of a dataclass."""
    arrays: Arrays = {}
    tree = _to_tree(node, type(node).__name__, arrays)
    return json.dumps(tree), arrays


def _parse(text: str) -> Any:  # noqa: ANN401 - a tree of JSON
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        message = f"message is no JSON text ({error}); it was cut short or not made by fedwinnow"
        raise ProtocolError(message) from error


def _open(data: bytes) -> tuple[str, Arrays]:
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        return str(header["__metadata__"]["message"]), load_arrays(data)
    except Exception as error:
        message = (
            f"{len(data)} bytes are not a whole message ({type(error).__name__}); send it again"
        )
        raise ProtocolError(message) from error


def _to_tree(node: object, path: str, arrays: Arrays) -> Any:  # noqa: ANN401, PLR0911 - a tree of JSON, one branch a type
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        sent = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
        empty = {name for name in unsent(type(node)) if not sent[name]}
        return {
            name: _to_tree(value, f"{path}.{name}", arrays)
            for name, value in sent.items()
            if name not in empty
        }
    if isinstance(node, Mapping):
        return {str(key): _to_tree(value, f"{path}.{key}", arrays) for key, value in node.items()}
    if isinstance(node, tuple | list):
        if all(type(item) is str for item in node):  # ids and domains: thousands of them a message
            return list(node)
        return [_to_tree(item, f"{path}.{i}", arrays) for i, item in enumerate(node)]
    if isinstance(node, torch.Tensor):
        tensor = node.detach().cpu().contiguous()
        name = str(tensor.dtype).removeprefix("torch.")
        array = (tensor.view(torch.uint16) if name == "bfloat16" else tensor).numpy()
        return _leaf(array, name, bool(torch.isfinite(tensor).all()), path, arrays)
    if isinstance(node, np.ndarray):
        finite = node.dtype.kind != "f" or bool(np.isfinite(node).all())
        return _leaf(np.ascontiguousarray(node), str(node.dtype), finite, path, arrays)
    if isinstance(node, float):
        if math.isnan(node):
            raise NonFiniteError(f"{path} is NaN; a number is needed")  # noqa: EM102, TRY003 - one clause
        return str(node) if node in _NON_FINITE.values() else float(node)
    if node is None or isinstance(node, bool | int | str):
        return node.value if isinstance(node, Phase) else node
    message = f"{path} is a {type(node).__name__}, which cannot travel"
    raise ProtocolError(message)


def unsent(cls: type) -> set[str]:
    """Return the fields that are not sent while they are empty."""
    return {f.name for f in dataclasses.fields(cls) if f.metadata == messages.UNSENT}


def _leaf(array: Any, dtype: str, finite: bool, path: str, arrays: Arrays) -> dict[str, Any]:  # noqa: ANN401, FBT001 - local helper
    if not finite:
        message = f"{path} holds a NaN or an infinity; nothing of it is sent"
        raise NonFiniteError(message)
    arrays[path] = array
    return {"array": path, "dtype": dtype, "shape": list(array.shape)}


def _unpack(tree: Any, arrays: Mapping[str, Any], cls: type) -> Any:  # noqa: ANN401 - depends on cls
    used: set[str] = set()
    node = _from_tree(tree, cls, cls.__name__, arrays, used)
    surplus = set(arrays) - used
    if surplus:
        message = f"arrays {sorted(surplus)[:3]} are not part of {cls.__name__}"
        raise ProtocolError(message)
    return node


def _from_tree(tree: Any, hint: Any, path: str, arrays: Mapping[str, Any], used: set[str]) -> Any:  # noqa: ANN401, C901, PLR0911 - one branch a type
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        known = {f.name for f in dataclasses.fields(hint)}
        needed = known - unsent(typing.cast("type", hint))
        if not isinstance(tree, dict) or not needed <= set(tree) <= known:
            raise _wrong(path, f"the fields {sorted(known)}", tree)
        hints = typing.get_type_hints(hint)
        values = {k: _from_tree(v, hints[k], f"{path}.{k}", arrays, used) for k, v in tree.items()}
        return typing.cast("Any", hint)(**values)
    if origin in {typing.Union, types.UnionType} and type(None) in inner:
        if tree is None:
            return None
        (other,) = (item for item in inner if item is not type(None))
        return _from_tree(tree, other, path, arrays, used)
    if origin is tuple:
        if not isinstance(tree, list) or (inner[-1] is not Ellipsis and len(tree) != len(inner)):
            raise _wrong(path, "a list", tree)
        if inner == (str, ...) and all(type(item) is str for item in tree):
            return tuple(tree)  # as below, without a path for each
        items = [inner[0]] * len(tree) if inner[-1] is Ellipsis else inner
        pairs = zip(tree, items, strict=True)
        return tuple(
            _from_tree(v, h, f"{path}.{i}", arrays, used) for i, (v, h) in enumerate(pairs)
        )
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(tree, dict):
            raise _wrong(path, "an object", tree)
        return {k: _from_tree(v, inner[1], f"{path}.{k}", arrays, used) for k, v in tree.items()}
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return _array(tree, hint, path, arrays, used)
    if hint is float:
        return _number(tree, path)
    if hint not in {str, int, bool} or type(tree) is not hint:
        raise _wrong(path, f"a {getattr(hint, '__name__', hint)}", tree)
    return tree


def _number(tree: Any, path: str) -> float:  # noqa: ANN401 - a node of JSON
    if isinstance(tree, str) and tree in _NON_FINITE:
        return _NON_FINITE[tree]
    if isinstance(tree, bool) or not isinstance(tree, int | float):
        raise _wrong(path, "a number", tree)
    try:
        number = float(tree)
    except OverflowError as error:
        raise _wrong(path, "a number below 1.8e308", "a larger one") from error
    if math.isnan(number):
        raise _wrong(path, "a number", tree)
    return number


def _array(tree: Any, hint: Any, path: str, arrays: Mapping[str, Any], used: set[str]) -> Any:  # noqa: ANN401 - array or tensor
    if not isinstance(tree, dict) or set(tree) != {"array", "dtype", "shape"}:
        raise _wrong(path, "an array", tree)
    name, dtype = tree["array"], str(tree["dtype"])
    if name != path or name not in arrays:
        message = f"{path}: its array is missing; the message was cut short"
        raise ProtocolError(message)
    used.add(name)
    array = np.asarray(arrays[name])
    stored = "uint16" if dtype == "bfloat16" else dtype
    if list(array.shape) != tree["shape"] or str(array.dtype) != stored:
        raise _wrong(path, f"{stored}{tree['shape']}", f"{array.dtype}{list(array.shape)}")
    if hint.array_type is not torch.Tensor:
        if not isinstance(array, hint):
            raise _wrong(path, hint.__name__, f"{array.dtype}{list(array.shape)}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            message = f"{path} holds a NaN or an infinity; the message is refused"
            raise NonFiniteError(message)
        return array
    tensor = torch.from_numpy(array.copy())
    tensor = tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
    if not isinstance(tensor, hint):
        raise _wrong(path, hint.__name__, f"{dtype}{list(array.shape)}")
    if not bool(torch.isfinite(tensor).all()):
        message = f"{path} holds a NaN or an infinity; the message is refused"
        raise NonFiniteError(message)
    return tensor


def _wrong(path: str, expected: str, came: object) -> ProtocolError:
    return ProtocolError(f"{path}: expected {expected}, got {str(came)[:80]!r}")
