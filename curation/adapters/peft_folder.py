"""Read and write adapter folders in PEFT's own format, whole or not at all.

``adapter_config.json`` and ``adapter_model.safetensors``, as ``PeftModel.from_pretrained`` reads
them. Modules of another rank or scale than most stand in ``rank_pattern`` and ``alpha_pattern``.
No model is needed to write or read it.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fedwinnow.curation.adapters.peft_keys import PREFIX
from fedwinnow.curation.adapters.peft_reader import open_adapter
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import IncompatibleAdapterError, ModelError, OutputError


def export_adapter(
    adapter: Adapter,
    folder: Path,
    *,
    base_name: str,
    target_modules: Sequence[str],
    dropout: float = 0.0,
    settings: Mapping[str, Any] | None = None,
    saved: Mapping[str, Tensor] | None = None,
    embeddings: Collection[str] = (),
) -> None:
    """Write a PEFT adapter folder, replacing one that is there.

    Args:
        adapter: The factors and scales.
        folder: The folder to write.
        base_name: Hub name or folder of the base model.
        target_modules: Modules, or ends of their names, that the factors belong to.
        dropout: LoRA dropout for training on.
        settings: Further keys of PEFT's configuration.
        saved: Parameter → value: of ``modules_to_save``, which ``settings`` must name, and copies
            of the base's own.
        embeddings: Those of the modules that are embeddings.

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
        **(settings or {}),
    }
    weights = {}
    for parameter, value in (saved or {}).items():
        module, _, part = parameter.rpartition(".")
        beside = ".base_layer" if module in adapter.a else ""  # what PEFT calls an adapted one
        weights[f"{PREFIX}{module}{beside}.{part}"] = value.contiguous()
    for name in adapter.modules:
        start, end = (".lora_embedding_", "") if name in embeddings else (".lora_", ".weight")
        weights[f"{PREFIX}{name}{start}A{end}"] = adapter.a[name].contiguous()
        weights[f"{PREFIX}{name}{start}B{end}"] = adapter.b[name].contiguous()
    write_folder(folder, config, weights)


def write_folder(folder: Path, config: Mapping[str, Any], weights: dict[str, Tensor]) -> None:
    """Write both files of an adapter under a temporary name, then put the folder in its place.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
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
    """Remove those of the folders that exist."""
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


def load_adapter(folder: Path, *, base: str) -> Adapter:
    """Read a PEFT LoRA folder into memory.

    Args:
        folder: Folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: Fingerprint of the base model that it belongs to.

    Raises:
        IncompatibleAdapterError: the folder is no plain LoRA adapter of linear layers, or holds
            whole modules.
    """
    try:
        found = open_adapter(folder, base=base)
    except ModelError as error:
        raise IncompatibleAdapterError(str(error)) from error
    for kind, names, cure in (
        ("modules_to_save", found.saved, "train without"),
        ("factors of an embedding", found.embeddings, "merge its folder by `fedwinnow merge`"),
        ("the base's own weights", found.copies, "save it with save_embedding_layers = False"),
    ):
        if names:
            words = ", ".join(sorted(names))
            message = f"{folder}: expected factors of linear layers only, got {kind} ({words}); "
            raise IncompatibleAdapterError(message + cure)
    one = found.adapter
    a = {name: factor.clone() for name, factor in one.a.items()}
    b = {name: factor.clone() for name, factor in one.b.items()}
    return Adapter(base=base, a=a, b=b, scales=one.scales)
