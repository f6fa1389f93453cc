"""Merge PEFT SHiRA folders, sparse differences of weights, by a sparse merging rule.

A rule gets the folders' entries and, as the adapter before training, a difference without entries.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from fedwinnow.curation.adapters import sparse
from fedwinnow.curation.adapters.module_names import changed_names, check_common_modules
from fedwinnow.curation.adapters.shira_folder import (
    StoredEntries,
    export_sparse,
    open_entries,
    shapes_of,
    sparse_adapter,
)
from fedwinnow.curation.datatypes import SparseAdapter
from fedwinnow.curation.errors import ModelError, RunError
from fedwinnow.server.adapter_tools.folder_checks import (
    FolderMerge,
    MergePart,
    base_name,
    reword_for_folders,
)
from fedwinnow.server.adapter_tools.merge_adapters import common_format
from fedwinnow.strategies.interfaces.merging import SparseMerging

T = TypeVar("T")


def sum_folders(
    shares: Mapping[str, float], out: Path, *, rule: str, merging: SparseMerging, base: str = ""
) -> FolderMerge:
    """Merge SHiRA folders into a new one, written whole or not at all.

    Args:
        shares: Folder → weight, of sum 1.
        out: A folder that is not there yet, or is empty.
        rule: Name of the rule.
        merging: The rule.
        base: Name of the base model where the folders name it differently; its folder where they
            do not say the shapes of their weights.

    Raises:
        ModelError: a folder is no plain SHiRA adapter, or they do not fit each other or the rule.
        IncompatibleAdapterError: no r holds the sum.
        OutputError: the result cannot be written.
    """
    opened = {folder: open_entries(Path(folder)) for folder in shares}
    name = base_name({folder: one.config for folder, one in opened.items()}, base)
    task = _task(opened)
    opened, renamed = _spelt(opened, base)
    local = Path(name) if name and Path(name).is_dir() else None
    shapes = shapes_of(list(opened.values()), local)
    adapters = {folder: sparse_adapter(one, shapes) for folder, one in opened.items()}
    try:
        merged = merging(adapters, shares, _nothing(adapters))
    except RunError as error:
        raise reword_for_folders(rule, error) from error
    rank = export_sparse(
        merged.adapter, out, base_name=name, target_modules=_targets(opened), task_type=task
    )
    parts = tuple(
        MergePart(
            folder=folder,
            weight=shares[folder],
            norm=_norm(adapters[folder]),
            ranks=(int(one.config["r"]), int(one.config["r"])),
            modules=len(one.sums),
        )
        for folder, one in opened.items()
    )
    target, apart = _distance(adapters, shares, merged.adapter)
    return FolderMerge(
        out=str(out),
        rule=rule,
        parts=parts,
        norm=_norm(merged.adapter),
        ranks=(rank, rank),
        modules=len(shapes),
        target_norm=target,
        error=apart / target if target > 0 else None,
        report=dict(merged.report),
        saved=(),
        renamed=renamed,
    )


def _spelt(
    opened: Mapping[str, StoredEntries], base: str
) -> tuple[dict[str, StoredEntries], dict[str, str]]:
    """Return the folders with one name for every module, and whose names were changed."""
    modules = {folder: tuple(one.sums) for folder, one in opened.items()}
    bases = [base, *(str(o.config.get("base_model_name_or_path") or "") for o in opened.values())]
    names = changed_names(modules, bases)

    def spelt(values: Mapping[str, T]) -> dict[str, T]:
        return {names.get(name, name): value for name, value in values.items()}

    found = {
        folder: replace(
            one, places=spelt(one.places), values=spelt(one.values), sums=spelt(one.sums)
        )
        for folder, one in opened.items()
    }
    check_common_modules({folder: tuple(one.sums) for folder, one in found.items()})
    changed = {
        folder: f"{name} → {names[name]}"
        for folder, own in modules.items()
        for name in own
        if names.get(name, name) != name
    }
    return found, changed


def _task(opened: Mapping[str, StoredEntries]) -> str | None:
    found = {folder: one.config.get("task_type") for folder, one in opened.items()}
    if len(set(found.values())) > 1:
        words = "; ".join(f"{folder}: {task}" for folder, task in found.items())
        message = f"folders differ in task_type ({words}); merge adapters that were trained alike"
        raise ModelError(message)
    task = next(iter(found.values()))
    return None if task is None else str(task)


def _nothing(adapters: Mapping[str, SparseAdapter]) -> SparseAdapter:
    """Return a difference without entries for every parameter that a folder has.

    Its number format, which the result has, holds the values of every folder exactly.
    """
    shapes = {name: shape for one in adapters.values() for name, shape in one.shapes.items()}
    kind = common_format(value for one in adapters.values() for value in one.values.values())
    return SparseAdapter(
        base="",
        indices={name: torch.zeros(0, dtype=torch.int64) for name in shapes},
        values={name: torch.zeros(0, dtype=kind) for name in shapes},
        shapes=shapes,
    )


def _targets(opened: Mapping[str, StoredEntries]) -> list[str]:
    """Return the folders' common target list where it is complete, else the full module names."""
    listed = [one.config.get("target_modules") for one in opened.values()]
    modules = [set(one.sums) for one in opened.values()]
    alike = all(isinstance(one, list) and set(one) == set(listed[0] or ()) for one in listed)
    if alike and listed[0] and all(one == modules[0] for one in modules):
        return sorted(listed[0])
    return sorted(set().union(*modules))


def _norm(adapter: SparseAdapter) -> float:
    return math.hypot(*(float(v.to(torch.float64).norm()) for v in adapter.values.values()))


def _distance(
    adapters: Mapping[str, SparseAdapter], shares: Mapping[str, float], merged: SparseAdapter
) -> tuple[float, float]:
    """Return ‖Σ p_i δ_i‖, and the distance of the result from that sum."""
    terms = [(share, adapters[folder]) for folder, share in shares.items()]
    target, apart = [], []
    for name in merged.shapes:
        target.append(float(sparse.weighted_sum(terms, name).values.norm()))
        both = sparse.weighted_sum([*terms, (-1.0, merged)], name)
        apart.append(float(both.values.norm()))
    return math.hypot(*target), math.hypot(*apart)
