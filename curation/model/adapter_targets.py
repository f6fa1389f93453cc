"""Find the modules of a base that get the adapter, from ``[adapter]``.

A linear layer is an ``nn.Linear``, a quantised one, or GPT-2's ``Conv1D``, whose weight is stored
transposed; its factors A (rank, inputs) and B (outputs, rank) are those of any linear layer, and
PEFT transposes B A where it touches the weight. Embeddings get no adapter.
"""

import re
from typing import Any

from torch import nn

from fedwinnow.curation.config.scoring import ALL_LINEAR, AdapterSection
from fedwinnow.curation.errors import ModelError


def target_modules(base: Any, adapter: AdapterSection, called: str) -> list[str]:  # noqa: ANN401 - any causal language model
    """Return PEFT's ``target_modules`` for the settings: ends of names, or full names.

    Args:
        base: The base model, without an adapter.
        adapter: The settings.
        called: The model's name, for errors.

    Raises:
        ModelError: a setting names no linear layer of the base, or no layer that it has, or nothing
            is left.
    """
    linear = {name for name, part in base.named_modules() if is_linear(part)}
    if not adapter.chooses_names():
        _check_ends("adapter.targets", adapter.targets, linear, called)
        return list(adapter.targets)
    if adapter.target_regex:
        chosen = _matching(base, adapter.target_regex, linear, called)
    elif adapter.targets == (ALL_LINEAR,):
        head = base.get_output_embeddings()
        chosen = {name for name in linear if base.get_submodule(name) is not head}
    else:
        _check_ends("adapter.targets", adapter.targets, linear, called)
        chosen = {name for name in linear if _last(name) in adapter.targets}
    if adapter.exclude:
        _check_ends("adapter.exclude", adapter.exclude, linear, called)
        chosen = {name for name in chosen if _last(name) not in adapter.exclude}
    if adapter.layers:
        chosen = _in_layers(chosen, adapter.layers, linear, called)
    if not chosen:
        message = (
            f"adapter.targets, target_regex, layers and exclude leave no linear layer of {called}; "
            f"it has {', '.join(_ends(linear))}"
        )
        raise ModelError(message)
    return sorted(chosen)


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer that can be adapted."""
    kind = type(module).__name__  # transformers' own classes are known by name
    return isinstance(module, nn.Linear) or "Linear" in kind or kind == "Conv1D"


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _ends(names: set[str]) -> list[str]:
    return sorted({_last(name) for name in names})


def _check_ends(key: str, given: tuple[str, ...], linear: set[str], called: str) -> None:
    absent = [one for one in given if one not in _ends(linear)]
    if absent:
        message = (
            f"{key}: {', '.join(absent)} are no linear layers of {called}; "
            f"it has {', '.join(_ends(linear))}"
        )
        raise ModelError(message)


def _matching(base: Any, regex: str, linear: set[str], called: str) -> set[str]:  # noqa: ANN401 - see above
    """Return the linear layers whose whole name matches; refuse a match of another weight."""
    found = {name for name, _ in base.named_modules() if name and re.fullmatch(regex, name)}
    for name in sorted(found - linear):
        part = base.get_submodule(name)
        if not any(True for _ in part.children()) and any(True for _ in part.parameters()):
            message = (
                f"adapter.target_regex = {regex!r} matches {name} of {called}, which is no linear "
                f"layer but {type(part).__name__}; narrow it"
            )
            raise ModelError(message)
    if not found & linear:
        message = (
            f"adapter.target_regex = {regex!r} matches the whole name of no linear layer of "
            f"{called}; it has names such as {min(linear, key=len, default='none')} and "
            f"{max(linear, key=len, default='none')}"
        )
        raise ModelError(message)
    return found & linear


def _in_layers(
    chosen: set[str], layers: tuple[int, ...], linear: set[str], called: str
) -> set[str]:
    """Return those of the modules that are in the given layers, by the first number of a name."""
    numbers = {name: _layer(name) for name in linear}
    there = {number for number in numbers.values() if number is not None}
    absent = sorted(set(layers) - there)
    if absent:
        what = f"layers {min(there)} to {max(there)}" if there else "no numbered layers"
        message = f"adapter.layers: {called} has {what}, not {', '.join(map(str, absent))}"
        raise ModelError(message)
    return {name for name in chosen if numbers[name] in layers}


def _layer(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)
