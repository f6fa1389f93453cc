"""An adapter on disk in PEFT's own format, written whole or not at all.

``adapter_config.json`` and ``adapter_model.safetensors``, as ``PeftModel.from_pretrained`` reads
them. Modules of another rank or scale than most stand in ``rank_pattern`` and ``alpha_pattern``.
No model is needed to write or read it.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedwinnow.curation.errors import IncompatibleAdapterError, OutputError
from fedwinnow.curation.nouns import Adapter

_PREFIX = "base_model.model."


def export_adapter(
    adapter: Adapter,
    folder: Path,
    *,
    base_name: str,
    target_modules: Sequence[str],
    dropout: float = 0.0,
) -> None:
    """Write a PEFT adapter folder, replacing one that is there.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    shapes = {name: (adapter.a[name].shape[0], adapter.scales[name]) for name in adapter.modules}
    ((rank, scale), _), *_ = Counter(shapes.values()).most_common(1)
    other = {name: shape for name, shape in shapes.items() if shape != (rank, scale)}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": dropout,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "target_modules": sorted(target_modules),
        "rank_pattern": {f"^{re.escape(name)}$": r for name, (r, _) in other.items()},
        "alpha_pattern": {f"^{re.escape(name)}$": s * r for name, (r, s) in other.items()},
    }
    weights = {}
    for name in adapter.modules:
        weights[f"{_PREFIX}{name}.lora_A.weight"] = adapter.a[name].contiguous()
        weights[f"{_PREFIX}{name}.lora_B.weight"] = adapter.b[name].contiguous()
    temporary = folder.with_name(f".{folder.name}.new")
    old = folder.with_name(f".{folder.name}.old")
    try:
        _clear(temporary, old)
        temporary.mkdir(parents=True)
        save_file(weights, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True)
        (temporary / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        _clear(old)
    except (OSError, SafetensorError) as error:
        message = (
            f"{folder}: the adapter cannot be written ({error}); free the disk or choose another "
            "folder"
        )
        raise OutputError(message) from error


def _clear(*folders: Path) -> None:
    """Remove the folders that are there."""
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


def load_adapter(folder: Path, *, base: str) -> Adapter:
    """Read a PEFT LoRA folder.

    Args:
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: Fingerprint of the base model that it belongs to.

    Raises:
        IncompatibleAdapterError: the folder is no LoRA adapter, or uses DoRA or biases.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        message = f"{folder}: expected a PEFT adapter folder ({error})"
        raise IncompatibleAdapterError(message) from error
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("bias") != "none":
        named = ("peft_type", "use_dora", "bias")
        came = ", ".join(f"{name} {config.get(name)!r}" for name in named)
        message = f"{folder}: only plain LoRA is read; got {came}"
        raise IncompatibleAdapterError(message)
    a, b, scales = {}, {}, {}
    for key, value in weights.items():
        name = key.removeprefix(_PREFIX).rsplit(".lora_", 1)[0]
        if ".lora_A." in key:
            a[name] = value
        elif ".lora_B." in key:
            b[name] = value
        else:
            message = f"{folder}: {key} is no LoRA factor; only plain LoRA is read"
            raise IncompatibleAdapterError(message)
    for name, factor in a.items():
        rank = factor.shape[0]
        alpha = _pattern(config.get("alpha_pattern") or {}, name, float(config["lora_alpha"]))
        scales[name] = float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
    return Adapter(base=base, a=a, b=b, scales=scales)


def _pattern(patterns: dict[str, Any], name: str, default: float) -> float:
    """PEFT's rule: the first pattern that matches the module's name or its end."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return float(value)
    return float(default)
