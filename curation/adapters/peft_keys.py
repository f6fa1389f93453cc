"""Sort the keys of an adapter file: factors, whole trained modules, copies of the base's weights.

PEFT writes ``base_model.model.MODULE.lora_A.weight`` for a linear layer, ``lora_embedding_A`` for
an embedding. A model that was wrapped when it was saved has the wrapper in its keys (torch.compile:
``_orig_mod``; FSDP: ``_fsdp_wrapped_module``; checkpoints: ``_checkpoint_wrapped_module``;
DeepSpeed and DDP: ``module`` in front). A wrapper is no module of the base, so it is taken out. Two
keys that come to one module then are refused.

Beside a LoRA on the embedding or the head, and after a change of the vocabulary, PEFT also saves
the base's own whole weight (``MODULE.base_layer.weight``, or ``MODULE.weight``): an untrained copy.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedwinnow.curation.errors import ModelError

PREFIX = "base_model.model."
WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)
"""Parts of names that wrappers add, anywhere."""
VOCABULARY = frozenset(
    {"embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings", "output_layer"}
)
"""Last name parts of embeddings and heads that PEFT copies whole after a change of vocabulary."""
_LINEAR = re.compile(r"^(?P<module>.+)\.lora_(?P<factor>[AB])(\.[^.]+)?\.weight$")
_EMBEDDING = re.compile(r"^(?P<module>.+)\.lora_embedding_(?P<factor>[AB])(\.[^.]+)?$")
_COPY = re.compile(r"^(?P<module>.+?)(?P<beside>\.base_layer)?\.(?P<part>weight|bias)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class SortedKeys:
    """Keys of one adapter file by what they hold."""

    a: dict[str, str] = field(default_factory=dict)
    """Module → key of its A."""
    b: dict[str, str] = field(default_factory=dict)
    embeddings: set[str] = field(default_factory=set)
    """Modules that are embeddings: their factors have names of their own."""
    called: dict[str, str] = field(default_factory=dict)
    """Module → its name at training, wrappers included, which patterns of names were matched to."""
    saved: dict[str, str] = field(default_factory=dict)
    """Parameter of ``modules_to_save`` → key."""
    copies: dict[str, str] = field(default_factory=dict)
    """Parameter of the base → key of its copy."""


def module_name(key: str) -> str:
    """Return a key without PEFT's prefix and without the names of wrappers."""
    parts = [part for part in key.split(".") if part not in WRAPPERS]
    while parts[0] == "module" and "base_model" in parts[1:3]:
        del parts[0]
    return ".".join(parts).removeprefix(PREFIX)


def sort_keys(keys: Iterable[str], config: Mapping[str, Any], folder: Path) -> SortedKeys:
    """Sort the keys of an adapter file.

    Args:
        keys: All keys of the file.
        config: PEFT's configuration of the adapter.
        folder: Where it comes from, for messages.

    Raises:
        ModelError: a key is none of these, two keys come to one array, or a factor is alone.
    """
    found = SortedKeys()
    kept = [str(name) for name in config.get("modules_to_save") or ()]
    for key in keys:
        _sort(key, found, kept, folder)
    odd = sorted(set(found.a) ^ set(found.b))
    if odd or not found.a:
        what = "there is none"
        if odd:
            there, lacking = ("A", "B") if odd[0] in found.a else ("B", "A")
            key = {**found.a, **found.b}[odd[0]]
            what = f"module {odd[0]} has lora_{there} and no lora_{lacking} (beside {key})"
        message = f"{folder}: expected pairs of lora_A and lora_B, but {what}; save it anew"
        raise ModelError(message)
    for name, key in found.copies.items():
        module = name.rpartition(".")[0]
        if module not in found.a and module.rpartition(".")[2] not in VOCABULARY:
            raise _strange(key, folder)
    return found


def _sort(key: str, found: SortedKeys, kept: list[str], folder: Path) -> None:
    """Put one key where it belongs."""
    name = module_name(key)
    linear, embedding = _LINEAR.match(name), _EMBEDDING.match(name)
    match, copy = linear or embedding, _COPY.match(name)
    if match:
        module = match["module"]
        _put(found.a if match["factor"] == "A" else found.b, module, key, folder)
        found.called[module] = key.removeprefix(PREFIX).partition(".lora_")[0]
        if embedding:
            found.embeddings.add(module)
    elif any(f".{one}." in f".{name}." for one in kept):
        _put(found.saved, name, key, folder)
    elif copy:
        _put(found.copies, f"{copy['module']}.{copy['part']}", key, folder)
    else:
        raise _strange(key, folder)


def _put(place: dict[str, str], name: str, key: str, folder: Path) -> None:
    if name in place:
        message = (
            f"{folder}: keys {place[name]} and {key} both come to {name}; the file mixes two ways "
            "of naming or two adapters: save one adapter, by save_pretrained"
        )
        raise ModelError(message)
    place[name] = key


def _strange(key: str, folder: Path) -> ModelError:
    return ModelError(
        f"{folder}: {key} is no LoRA factor and no part of modules_to_save; save the adapter anew "
        "without it"
    )
