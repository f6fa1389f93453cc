"""Read LoRA adapters from PEFT folders factor by factor, each when it is used.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``. A factor is a view of the
mapped file, so that adapters of any number and size cost only what is being computed on. What a
plain pair of factors cannot express (DoRA, biases, quantised or tokenwise variants, an
initialisation that changed the base) is refused by the name of its setting. No model and no PEFT is
needed.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import ModelError

PREFIX = "base_model.model."
INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that leave the base as it is."""
READ = frozenset(
    {
        *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
        *("revision", "inference_mode", "r", "lora_alpha", "lora_dropout", "fan_in_fan_out"),
        *("bias", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("init_lora_weights", "eva_config", "loftq_config", "qalora_group_size"),
        *("megatron_core", "runtime_config", "ensure_weight_tying"),
    }
)
"""Keys of the configuration that are read, or do not say what a weight is; any other must be empty
(``loftq_config`` counts only with ``init_lora_weights = "loftq"``)."""
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<factor>[AB])\.weight$")
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
    """A LoRA adapter on disk: its configuration, its lazily read factors, and its whole modules."""

    folder: Path
    config: Mapping[str, Any]
    adapter: Adapter
    saved: Mapping[str, Tensor]
    """Parameter → trained value, of ``modules_to_save``; lazily read."""
    shapes: Mapping[str, tuple[int, int, int]]
    """Module → outputs, rank, inputs; from the file's header."""


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
    path = folder / "adapter_model.safetensors"
    try:
        file: Any = safe_open(path, framework="pt")  # its methods are untyped
        heads = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        shapes = {key: (tuple(head.get_shape()), head.get_dtype()) for key, head in heads.items()}
    except (OSError, SafetensorError) as error:
        raise why_unreadable(path, error) from error
    factors, saved = _sorted_keys(shapes, config, folder)
    modules = tuple(sorted(factors["A"]))
    sizes = {module: _size(module, factors, shapes, folder) for module in modules}
    adapter = Adapter(
        base=base,
        a=LazyFactor(modules, lambda module: file.get_tensor(factors["A"][module])),
        b=LazyFactor(modules, lambda module: file.get_tensor(factors["B"][module])),
        scales={module: _scale(config, module, sizes[module][1], folder) for module in modules},
    )
    whole = LazyFactor(sorted(saved), lambda name: file.get_tensor(saved[name]))
    return StoredAdapter(folder=folder, config=config, adapter=adapter, saved=whole, shapes=sizes)


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


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of an adapter folder.

    Raises:
        ModelError: there is none, or it is no table of settings.
    """
    path = folder / "adapter_config.json"
    if not path.exists():
        what = "there is none in it" if folder.is_dir() else "there is no such folder"
        message = f"{folder}: expected a PEFT adapter folder with {path.name}, and {what}"
        raise ModelError(message)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{folder}: expected a PEFT adapter folder with {path.name} ({error})"
        raise ModelError(message) from error
    if not isinstance(config, dict):
        message = f"{path}: expected a table of settings, got {type(config).__name__}"
        raise ModelError(message)
    return config


def check_plain_lora(config: Mapping[str, Any], folder: Path | str) -> None:
    """Refuse settings that make an adapter more than pairs of factors and whole modules.

    Args:
        config: PEFT's configuration of the adapter.
        folder: Where it comes from, for the message.

    Raises:
        ModelError: naming the folder, the setting and its value.
    """
    wrong = []
    if config.get("peft_type") != "LORA":
        sparse = " (SHiRA folders are added up by `fedwinnow merge --rule sparse_sum`)"
        wrong.append(("peft_type", f"'LORA'{sparse * (config.get('peft_type') == 'SHIRA')}"))
    if config.get("bias", "none") != "none":
        wrong.append(("bias", "'none'; biases belong to one adapter and cannot be summed"))
    if config.get("use_dora"):
        wrong.append(("use_dora", "false; DoRA's magnitudes make ΔW depend on the base's weights"))
    if config.get("init_lora_weights", True) not in INITIALISATIONS:
        cure = "save it with path_initial_model_for_weight_conversion"
        wrong.append(("init_lora_weights", f"one that leaves the base as it is; {cure}"))
    wrong += [(key, "nothing; only plain LoRA is read") for key in sorted(set(config) - READ)
              if config[key]]  # fmt: skip
    if wrong:
        key, expected = wrong[0]
        message = f"{folder}: expected {key} = {expected}; got {key} = {config.get(key)!r}"
        raise ModelError(message)


def _sorted_keys(
    shapes: Mapping[str, Any], config: Mapping[str, Any], folder: Path
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return keys of the factors by factor and module, and of whole modules by parameter."""
    factors: dict[str, dict[str, str]] = {"A": {}, "B": {}}
    whole: dict[str, str] = {}
    kept = [str(name) for name in config.get("modules_to_save") or ()]
    for key in shapes:
        name = key.removeprefix(PREFIX)
        match = _FACTOR.match(name)
        if match:
            factors[match["factor"]][match["module"]] = key
        elif any(re.match(rf"(^|.*\.){re.escape(one)}($|\..*)", name) for one in kept):
            whole[name] = key
        else:
            message = (
                f"{folder}: {key} is no LoRA factor and no part of modules_to_save; save the "
                "adapter anew without it"
            )
            raise ModelError(message)
    odd = sorted(set(factors["A"]) ^ set(factors["B"]))
    if odd or not factors["A"]:
        what = "there is none"
        if odd:
            there, lacking = ("A", "B") if odd[0] in factors["A"] else ("B", "A")
            what = f"module {odd[0]} has lora_{there} and no lora_{lacking}"
        message = f"{folder}: expected pairs of lora_A and lora_B, but {what}; save it anew"
        raise ModelError(message)
    return factors, whole


def _size(
    module: str, factors: Mapping[str, Mapping[str, str]], shapes: Mapping[str, Any], folder: Path
) -> tuple[int, int, int]:
    (a, a_kind), (b, b_kind) = shapes[factors["A"][module]], shapes[factors["B"][module]]
    matrices = len(a) == len(b) == _MATRIX and {a_kind, b_kind} <= _FLOATS
    if not matrices or a[0] != b[1] or 0 in (*a, *b):
        message = (
            f"{folder}, module {module}: expected floating-point A (rank, inputs) and B (outputs, "
            f"rank), got A {a} {a_kind} and B {b} {b_kind}; only linear layers are read"
        )
        raise ModelError(message)
    return b[0], a[0], a[1]


def _scale(config: Mapping[str, Any], module: str, rank: int, folder: Path) -> float:
    """Return α / r, or α / √r under rsLoRA; by PEFT's rule for patterns of names.

    Reference:
        D. Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023,
        section 3, https://arxiv.org/abs/2312.03732
    """
    alpha = _pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", 8))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha > 0:
        message = f"{folder}, module {module}: expected lora_alpha above 0, got {alpha!r}"
        raise ModelError(message)
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:  # noqa: ANN401 - what JSON holds
    """Return the value of the first pattern that matches the module's name or its end."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default
