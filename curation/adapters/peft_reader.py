"""Read LoRA adapters from PEFT folders factor by factor, each when it is used.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``. A factor is a view of the
mapped file, so that adapters of any number and size cost only what is being computed on. What a
plain pair of factors cannot express (DoRA, biases, quantised or tokenwise variants, an
initialisation that changed the base) is refused by the name of its setting, and so is a file whose
ranks are not those of its configuration. No model and no PEFT is needed.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedwinnow.curation.adapters.peft_config import (
    NamePatterns,
    check_plain_lora,
    read_config,
    shown,
)
from fedwinnow.curation.adapters.peft_keys import SortedKeys, sort_keys
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import ModelError

_RANK, _ALPHA = 8, 8
"""PEFT's defaults where the configuration is silent."""
_TIED_BY_NAME = frozenset({"embed_tokens", "lm_head"})
"""Last name parts by which PEFT finds that a tied embedding or head is adapted."""
_MATRIX = 2
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


class LazyFactor(Mapping[str, Tensor]):
    """Mapping of names to tensors, each made anew at every access."""

    def __init__(self, names: Sequence[str], make: Callable[[str], Tensor]) -> None:
        """Take the names, and the function that makes the tensor of a name."""
        self._names = dict.fromkeys(names)
        self._make = make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAdapter:
    """A LoRA adapter on disk: its configuration and what its file holds, lazily read."""

    folder: Path
    config: Mapping[str, Any]
    adapter: Adapter
    saved: Mapping[str, Tensor]
    """Parameter → trained value, of ``modules_to_save``; lazily read."""
    shapes: Mapping[str, tuple[int, int, int]]
    """Module → outputs, rank, inputs; from the file's header."""
    embeddings: frozenset[str] = frozenset()
    """Modules that are embeddings: inputs are their rows; PEFT has other names for factors."""
    copies: Mapping[str, Tensor] = field(default_factory=dict)
    """Parameter of the base → its value as saved beside the adapter, untrained; lazily read."""
    tied: Mapping[str, str] = field(default_factory=dict)
    """Head → embedding whose factors are its own, transposed (``ensure_weight_tying``)."""


def open_adapter(folder: Path, *, base: str = "") -> StoredAdapter:
    """Open a PEFT LoRA folder.

    Args:
        folder: Folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: Fingerprint or name of the base model that it belongs to.

    Raises:
        ModelError: the folder is no adapter, no plain LoRA, or not whole; the message names the
            folder and the setting or array.
    """
    config = read_config(folder)
    check_plain_lora(config, folder)
    patterns = NamePatterns(config, folder)
    path = folder / "adapter_model.safetensors"
    try:
        file: Any = safe_open(path, framework="pt")  # its methods are untyped
        heads = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        shapes = {key: (tuple(head.get_shape()), head.get_dtype()) for key, head in heads.items()}
    except (OSError, SafetensorError) as error:
        raise why_unreadable(path, error) from error
    keys = sort_keys(shapes, config, folder)
    modules = tuple(sorted(keys.a))
    sizes = {module: _size(module, keys, shapes, folder) for module in modules}
    for module in modules:
        _check_rank(config, patterns, (keys.called[module], module), sizes[module][1])
    adapter = Adapter(
        base=base,
        a=LazyFactor(modules, lambda module: file.get_tensor(keys.a[module])),
        b=LazyFactor(modules, lambda module: file.get_tensor(keys.b[module])),
        scales={m: _scale(config, patterns, (keys.called[m], m), sizes[m][1]) for m in modules},
    )
    tie = config.get("ensure_weight_tying")
    tied = _tie(keys, adapter, sizes, file, folder) if tie else {}
    _check_targets(config, modules, tied, folder)
    return StoredAdapter(
        folder=folder,
        config=config,
        adapter=adapter,
        saved=LazyFactor(sorted(keys.saved), lambda name: file.get_tensor(keys.saved[name])),
        shapes=sizes,
        embeddings=frozenset(keys.embeddings),
        copies=LazyFactor(sorted(keys.copies), lambda name: file.get_tensor(keys.copies[name])),
        tied=tied,
    )


def _tie(
    keys: SortedKeys,
    adapter: Adapter,
    sizes: Mapping[str, tuple[int, int, int]],
    file: Any,  # noqa: ANN401 - its methods are untyped
    folder: Path,
) -> dict[str, str]:
    """Return head → embedding; take a tied whole head for trained, refuse ties that do not hold.

    PEFT saves a tied head beside its embedding, and reads both back into one memory: factors that
    are not each other's transposes would overwrite each other.

    Raises:
        ModelError: factors or scales of an embedding and of the head differ.
    """
    for name in [name for name in keys.copies if name.rpartition(".")[0] not in keys.a]:
        value = file.get_tensor(keys.copies[name])
        if any(torch.equal(value, file.get_tensor(key)) for key in keys.saved.values()):
            keys.saved[name] = keys.copies.pop(name)
    tied = {}
    for embedding in sorted(keys.embeddings):
        size = sizes[embedding][::-1]
        for head in (m for m in adapter.modules if sizes[m] == size and m not in keys.embeddings):
            factors = adapter.a[head], adapter.b[head]
            transposed = adapter.b[embedding].T, adapter.a[embedding].T
            alike = adapter.scales[head] == adapter.scales[embedding]
            if not alike or not all(map(torch.equal, factors, transposed)):
                message = (
                    f"{folder}: expected {head} to have the scale of {embedding} and its factors "
                    "transposed, as ensure_weight_tying = true says, got others; save the adapter "
                    "with ensure_weight_tying = false where the two weights are not tied"
                )
                raise ModelError(message)
            tied[head] = embedding
    return tied


def _check_targets(
    config: Mapping[str, Any], modules: Sequence[str], tied: Mapping[str, str], folder: Path
) -> None:
    """Refuse a module that the list of targets does not name: PEFT leaves it out without a word.

    A tied head need not be named where PEFT knows the embedding by its name.

    Raises:
        ModelError: naming the folder and the module.
    """
    listed = config.get("target_modules")
    if not isinstance(listed, list):  # an expression, which prefixes of names may be part of
        return
    ends = {str(name).rpartition(".")[2] for name in listed}
    known = tied if ends & _TIED_BY_NAME else {}
    for module in modules:
        if module.rpartition(".")[2] not in ends and module not in known:
            message = (
                f"{folder}: the file holds factors of {module}, and target_modules = "
                f"{sorted(map(str, listed))} does not name it, so PEFT would leave them out; "
                "add it there, or save the adapter anew (with ensure_weight_tying = false, if it "
                "is a tied head)"
            )
            raise ModelError(message)


def why_unreadable(path: Path, error: Exception) -> ModelError:
    """Return the error of an adapter's unreadable arrays: why, and what to do about it."""
    folder = path.parent
    if not path.exists() and (folder / "adapter_model.bin").exists():
        return ModelError(
            f"{folder}: holds adapter_model.bin, a pickle that may run code when read; save "
            f"the adapter anew as {path.name}: save_pretrained(folder, safe_serialization=True)"
        )
    if not path.exists():
        return ModelError(f"{folder}: expected {path.name}, and there is none; save it anew")
    return ModelError(
        f"{path}: expected a whole safetensors file ({error}); it may be cut short: copy it, or "
        "save the adapter, anew"
    )


def check_finite(one: StoredAdapter) -> None:
    """Refuse a factor with a NaN or an infinity.

    Raises:
        ModelError: naming the folder, the module and the factor.
    """
    for factor, arrays in (("A", one.adapter.a), ("B", one.adapter.b)):
        for module in one.shapes:
            if not bool(arrays[module].isfinite().all()):
                message = (
                    f"{one.folder}, module {module}: expected finite numbers, got a NaN or an "
                    f"infinity in lora_{factor}; its training diverged: leave this folder out"
                )
                raise ModelError(message)


def _size(
    module: str, keys: SortedKeys, shapes: Mapping[str, Any], folder: Path
) -> tuple[int, int, int]:
    (a, a_kind), (b, b_kind) = shapes[keys.a[module]], shapes[keys.b[module]]
    matrices = len(a) == len(b) == _MATRIX and {a_kind, b_kind} <= _FLOATS
    if not matrices or a[0] != b[1] or 0 in (*a, *b):
        message = (
            f"{folder}, module {module}: expected floating-point A (rank, inputs) and B (outputs, "
            f"rank), got A {a} {a_kind} and B {b} {b_kind}; only linear layers and embeddings are "
            "read, in " + ", ".join(sorted(_FLOATS))
        )
        raise ModelError(message)
    return b[0], a[0], a[1]


def _check_rank(
    config: Mapping[str, Any], patterns: NamePatterns, names: tuple[str, str], rank: int
) -> None:
    """Refuse a module whose rank in the file is not the one that the configuration gives it.

    Args:
        config: PEFT's configuration of the adapter.
        patterns: Its tables of patterns.
        names: The module's name at training, which may hold a wrapper's, and in the base.
        rank: Of the file's factors.

    Raises:
        ModelError: naming the setting, its value and the file's.
    """
    pattern = patterns.first("rank_pattern", names)
    wanted = config.get("r", _RANK) if pattern is None else config["rank_pattern"][pattern]
    if isinstance(wanted, bool) or wanted != rank:
        setting = "r" if pattern is None else f"rank_pattern[{shown(pattern)}]"
        message = (
            f"{patterns.folder}, module {names[1]}: adapter_config.json says {setting} = "
            f"{shown(wanted)}, and the file's lora_A has rank {rank}; the two are not of one "
            "adapter: save it anew, or put the file's rank into rank_pattern"
        )
        raise ModelError(message)


def _scale(
    config: Mapping[str, Any], patterns: NamePatterns, names: tuple[str, str], rank: int
) -> float:
    """Return α / r, or α / √r under rsLoRA; by PEFT's rule for patterns of names.

    Reference:
        D. Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023,
        section 3, https://arxiv.org/abs/2312.03732
    """
    pattern = patterns.first("alpha_pattern", names)
    alpha = (
        config.get("lora_alpha", _ALPHA) if pattern is None else config["alpha_pattern"][pattern]
    )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        setting = "lora_alpha" if pattern is None else f"alpha_pattern[{shown(pattern)}]"
        message = (
            f"{patterns.folder}, module {names[1]}: expected a finite {setting} above 0, got "
            f"{shown(alpha)}; correct adapter_config.json"
        )
        raise ModelError(message)
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
