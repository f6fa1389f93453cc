"""Check that adapter folders can be merged: weights, bases, settings, shapes, output folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedwinnow.curation.adapters.peft_reader import StoredAdapter
from fedwinnow.curation.errors import ConfigError, ModelError, OutputError, RunError

LAYOUT = "fan_in_fan_out"
ALIKE = (LAYOUT, "task_type", "modules_to_save")
"""Keys of PEFT's configuration that must agree in all folders, as the result has one of each."""


def folder_shares(folders: Sequence[Path], weights: Sequence[float]) -> dict[str, float]:
    """Return folder → share; the shares sum to 1.

    Raises:
        ConfigError: weights do not fit the folders, or a folder is given twice.
    """
    if not folders:
        message = "merge: expected at least one adapter folder, got none"
        raise ConfigError(message)
    resolved = [folder.resolve() for folder in folders]
    twice = [
        str(f) for f, whole in zip(folders, resolved, strict=True) if resolved.count(whole) > 1
    ]
    if twice:
        message = f"{twice[0]} is given twice; name it once and raise its --weight"
        raise ConfigError(message)
    given = list(weights) or [1.0] * len(folders)
    good = len(given) == len(folders) and all(math.isfinite(w) and w >= 0 for w in given)
    if not good or not max(given) > 0:
        message = (
            f"--weight: expected {len(folders)} numbers of at least 0, not all 0, one for each "
            f"folder; got {given}"
        )
        raise ConfigError(message)
    given = [math.ldexp(w, -math.frexp(max(given))[1]) for w in given]  # their sum is finite
    total = math.fsum(given)
    return {str(folder): w / total for folder, w in zip(folders, given, strict=True)}


def check_not_there(out: Path) -> None:
    """Refuse an output path that exists, unless it is an empty folder.

    Raises:
        OutputError: something is there.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        message = f"--out {out}: there is something already; choose a new folder"
        raise OutputError(message)


def base_name(configs: Mapping[str, Mapping[str, Any]], base: str) -> str:
    """Return the name of the base model: the caller's, or else that of all folders.

    Raises:
        ModelError: the folders differ and the caller gives no name.
    """
    named = {f: str(one.get("base_model_name_or_path") or "") for f, one in configs.items()}
    if base:
        return base
    if len(set(named.values())) > 1:
        words = "; ".join(f"{folder}: {name or 'none'}" for folder, name in named.items())
        message = (
            f"folders name different base models ({words}); merge adapters of one base, or say "
            "with --base what it is called"
        )
        raise ModelError(message)
    return next(iter(named.values()))


def check_alike(opened: Mapping[str, StoredAdapter]) -> None:
    """Refuse folders that differ in a key of ``ALIKE``, in ties, or in shapes of whole modules.

    Raises:
        ModelError: two folders differ.
    """
    (first, one), *rest = opened.items()
    for folder, other in rest:
        for key in ALIKE:
            mine, theirs = (c.config.get(key) or None for c in (one, other))
            if key == LAYOUT and not (key in one.config and key in other.config):
                continue  # a run's own folders leave it to PEFT, which sets it by the layer
            if key == "modules_to_save":  # a list in any order
                mine, theirs = (sorted(found) if found else None for found in (mine, theirs))
            if mine != theirs:
                message = (
                    f"{folder}: expected {key} = {mine!r} as in {first}, got {theirs!r}; merge "
                    "adapters that were trained alike in this"
                )
                raise ModelError(message)
        shapes = [{key: tuple(v.shape) for key, v in c.saved.items()} for c in (one, other)]
        if shapes[0] != shapes[1]:
            odd = min(set(shapes[0].items()) ^ set(shapes[1].items()))
            message = (
                f"{folder}: its modules_to_save differ from those of {first} in {odd[0]} {odd[1]}; "
                "merge adapters of one base"
            )
            raise ModelError(message)


def check_vocabulary(opened: Mapping[str, StoredAdapter]) -> dict[str, str]:
    """Return head → embedding of all folders' tied factors; refuse unlike kinds and ties.

    Raises:
        ModelError: a module is an embedding in one folder and a linear layer in another, or it is
            tied in one alone of those that change it.
    """
    embeddings = {module: folder for folder, one in opened.items() for module in one.embeddings}
    tied = {head: (e, folder) for folder, one in opened.items() for head, e in one.tied.items()}
    for folder, one in opened.items():
        for module in sorted(one.shapes):
            if module in embeddings and module not in one.embeddings:
                message = (
                    f"{folder}: {module} is a linear layer, and an embedding in "
                    f"{embeddings[module]}; merge adapters of one base"
                )
                raise ModelError(message)
        for head, (embedding, first) in tied.items():
            if {head, embedding} & set(one.shapes) and one.tied.get(head) != embedding:
                message = (
                    f"{folder}: expected ensure_weight_tying = true with factors of {head} and "
                    f"{embedding} alike, as in {first}; merge adapters that were trained alike in "
                    "this"
                )
                raise ModelError(message)
    return {head: embedding for head, (embedding, _) in tied.items()}


def check_copies(opened: Mapping[str, StoredAdapter]) -> None:
    """Refuse folders whose copies of the base's own weights are not of one base.

    Beside a LoRA on the embedding or the head, PEFT saves the base's whole weight. A folder without
    that LoRA has no copy and is of the same base by its name; a vocabulary that was changed in one
    folder alone is refused. Copies in two number formats agree where the wider rounds to the other.

    Raises:
        ModelError: naming two folders and the parameter.
    """
    for key in sorted({key for one in opened.values() for key in one.copies}):
        holders = {folder: one for folder, one in opened.items() if key in one.copies}
        (first, one), *rest = holders.items()
        module = key.rpartition(".")[0]
        beside = all(module in held.adapter.a for held in holders.values())
        lacking = [folder for folder in opened if folder not in holders]
        if lacking and not beside:
            message = (
                f"{lacking[0]}: lacks {key}, which {first} holds whole, untrained: its base has "
                "another vocabulary; save both with save_embedding_layers = True, or neither"
            )
            raise ModelError(message)
        for folder, other in rest:
            if not _round_alike(one.copies[key], other.copies[key]):
                message = (
                    f"{folder}: its copy of the base's {key} is another than that of {first}, and "
                    "neither names it in modules_to_save; merge adapters of one base, or name it "
                    "there where it was trained"
                )
                raise ModelError(message)


def _round_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two arrays are equal in the narrower of their number formats."""
    if one.shape != other.shape:
        return False
    if one.dtype == other.dtype:
        return torch.equal(one, other)
    if not (one.is_floating_point() and other.is_floating_point()):
        return False
    narrow = min(one.dtype, other.dtype, key=lambda kind: (kind.itemsize, -torch.finfo(kind).eps))
    return torch.equal(one.to(narrow), other.to(narrow))


def check_shared_a(opened: Mapping[str, StoredAdapter], rule: str) -> None:
    """Refuse folders whose A differ, for a rule that averages B alone.

    Raises:
        ModelError: naming two folders and the first module in which their A differs.
    """
    (first, one), *rest = opened.items()
    for folder, other in rest:
        for module in sorted(set(one.shapes) & set(other.shapes)):
            mine, theirs = one.adapter.a[module], other.adapter.a[module]
            if mine.dtype != theirs.dtype or not torch.equal(mine, theirs):
                message = (
                    f"--rule {rule} needs folders with one lora_A, bit for bit; {folder} has "
                    f"another than {first} in module {module}; choose --rule core_svd or stack"
                )
                raise ModelError(message)


def reword_for_folders(rule: str, error: RunError) -> ModelError:
    """Reword a rule's error about the sites of a federation as one about folders."""
    words = str(error).replace("adapter of site ", "folder ").replace("site ", "folder ")
    words = words.replace("merging.name = 'core_svd'", "--rule core_svd")
    return ModelError(f"--rule {rule} refuses these folders: {words}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MergePart:
    """One folder's part in a merge."""

    folder: str
    weight: float
    """Share of the merge; the shares of all parts sum to 1."""
    norm: float
    """‖ΔW_i‖ over all modules."""
    ranks: tuple[int, int]
    """Smallest and largest over its modules."""
    modules: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderMerge:
    """Result of a merge of folders: its parts, norms, ranks and error."""

    out: str
    rule: str
    parts: tuple[MergePart, ...]
    norm: float
    """‖ΔW‖ of the result."""
    ranks: tuple[int, int]
    modules: int
    target_norm: float
    """‖ΔW*‖ of the weighted sum."""
    error: float | None
    """‖ΔW − ΔW*‖ / ‖ΔW*‖; None where the weighted sum is 0."""
    report: Mapping[str, float]
    """Figures that the rule reports, by name."""
    saved: tuple[str, ...]
    """Parameters of ``modules_to_save``, averaged."""
    copied: tuple[str, ...] = ()
    """Parameters of the base that folders hold untrained, all alike; copied."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Folder → one of its module names, as it was and as the base's files have it."""
