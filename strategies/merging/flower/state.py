"""Save and restore a Flower strategy's state as named arrays that a run can commit.

The state is what a round changed in the strategy's attributes: numbers, arrays, and lists or
mappings of arrays, under names ``attribute/kind/key``. Anything else is refused by name.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedwinnow.curation.errors import NonFiniteError, PluginError
from fedwinnow.strategies.interfaces.merging import Memory

PASSING = frozenset({"current_arrays"})
"""Attributes with the previous adapter, which every round sends anew."""
ROUNDS = "rounds"
"""Name of the number of rounds played, which the caller counts."""
Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


def restore(strategy: Any, memory: Memory) -> None:  # noqa: ANN401 - see ``FlowerRule.make``
    """Put back what :func:`state_of` took out; names are ``attribute/kind/key``."""
    parts: dict[tuple[str, str], dict[str, np.ndarray[Any, np.dtype[Any]]]] = {}
    for name, array in memory.items():
        if name != ROUNDS:
            attribute, kind, key = name.split("/", 2)
            parts.setdefault((attribute, kind), {})[key] = np.array(array)
    for (attribute, kind), arrays in parts.items():
        value: Any = arrays
        if kind == "list":
            value = [arrays[str(place)] for place in range(len(arrays))]
        elif kind == "array":
            value = arrays[""]
        elif kind == "number":
            value = float(arrays[""][0])
        setattr(strategy, attribute, value)


def state_of(name: str, strategy: Any, fresh: Mapping[str, Any]) -> Arrays:  # noqa: ANN401 - see ``FlowerRule.make``
    """Return what a round changed in the strategy, as arrays.

    Raises:
        PluginError: the round changed something that is no array and no number.
        NonFiniteError: an array or a number is not finite.
    """
    state: Arrays = {}
    for attribute, value in vars(strategy).items():
        if attribute in PASSING or (attribute in fresh and fresh[attribute] is value):
            continue
        if type(value) is dict:
            parts, kind = dict(value), "dict"
        elif type(value) in (list, tuple):
            parts, kind = {str(place): part for place, part in enumerate(value)}, "list"
        else:
            parts, kind = {"": value}, "array" if isinstance(value, np.ndarray) else "number"
        for key, part in parts.items():
            state[f"{attribute}/{kind}/{key}"] = _array(part, f"flower:{name}", attribute)
    return state


def _array(value: object, name: str, attribute: str) -> np.ndarray[Any, np.dtype[Any]]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number and not (isinstance(value, np.ndarray) and value.ndim):
        message = (
            f"merging {name!r} keeps {attribute} ({type(value).__name__}) between rounds, which "
            "cannot be committed; choose another rule"
        )
        raise PluginError(message)
    array = np.array(value, dtype=np.float64, ndmin=1)
    if not np.isfinite(array).all():
        message = (
            f"merging {name!r}: expected finite numbers in {attribute}, got NaN or infinity; "
            "change its settings"
        )
        raise NonFiniteError(message)
    return array
