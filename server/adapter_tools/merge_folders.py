"""Merge PEFT adapter folders by any rule of the registry, without a federation.

Given folders i with weights p_i (brought to sum 1), every rule sees what it sees of adapters in
memory (``server/adapter_tools/merge_adapters.py``). ``modules_to_save`` (whole trained modules,
such as a head) follow a rule of their own: the mean with the same weights, whatever the rule.
Copies of the base's own weights, which PEFT saves beside a LoRA on the embedding or the head, must
agree and are copied. All that is averaged has the number format that holds every folder's exactly.

Factors are views of the files and are read when a rule asks for them; memory holds the factors of
one module and the merged adapter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters.module_names import check_common_modules, common_spelling
from fedwinnow.curation.adapters.peft_folder import export_adapter
from fedwinnow.curation.adapters.peft_reader import StoredAdapter, check_finite, open_adapter
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import ConfigError, ModelError, RunError
from fedwinnow.server.adapter_tools.folder_checks import (
    ALIKE,
    FolderMerge,
    MergePart,
    base_name,
    check_alike,
    check_copies,
    check_not_there,
    check_shared_a,
    check_vocabulary,
    folder_shares,
    reword_for_folders,
)
from fedwinnow.server.adapter_tools.merge_adapters import (
    common_format,
    merge_widened,
    sizes_of,
    widened,
)
from fedwinnow.server.adapter_tools.merge_sparse_folders import sum_folders
from fedwinnow.strategies.interfaces.merging import FactorMerging, Merged, Merging, SparseMerging
from fedwinnow.strategies.registry import build


def merge_folders(
    folders: Sequence[Path],
    out: Path,
    *,
    rule: str,
    settings: Mapping[str, Any] | None = None,
    weights: Sequence[float] = (),
    base: str = "",
) -> FolderMerge:
    """Merge PEFT adapter folders into a new one, written whole or not at all.

    Args:
        folders: At least one adapter folder, each once.
        out: A folder that is not there yet, or is empty.
        rule: Name of a merging rule; ``fedwinnow plugins --kind merging`` lists them.
        settings: Settings of the rule.
        weights: One for each folder, at least 0 and not all 0; none: equal weights.
        base: Name of the base model, where the folders name it differently; its local folder
            where they name its modules differently, or where sparse differences do not say the
            shapes of their weights.

    Raises:
        ConfigError: weights do not fit the folders, or the rule changes the base.
        ModelError: a folder is no plain adapter of the rule's kind, or they do not fit each other
            or the rule.
        PluginError: the rule or a setting is unknown.
        OutputError: the result cannot be written, or something is there already.
        IncompatibleAdapterError: no folder can hold a sparse sum.
    """
    merging: Merging = build("merging", rule, settings or {})
    shares = folder_shares(folders, weights)
    check_not_there(out)
    if isinstance(merging, SparseMerging):
        return sum_folders(shares, out, rule=rule, merging=merging, base=base)
    opened, name, renamed = _open(folders, base)
    tied = check_vocabulary(opened)
    if isinstance(merging, FactorMerging):
        check_shared_a(opened, rule)
    adapters = {folder: one.adapter for folder, one in opened.items()}
    sizes = sizes_of({folder: one.shapes for folder, one in opened.items()})
    try:
        merged = merge_widened(adapters, shares, merging, sizes)
    except RunError as error:
        raise reword_for_folders(rule, error) from error
    if merged.change is not None:
        message = (
            f"--rule {rule} changes the base model, which an adapter folder cannot hold; choose "
            "a rule that gives an adapter, such as stack (exact) or core_svd"
        )
        raise ConfigError(message)
    merged = replace(merged, adapter=_tied_again(merged.adapter, tied))
    saved, copies = _whole(opened, shares)
    configs = [one.config for one in opened.values()]
    export_adapter(
        merged.adapter,
        out,
        base_name=name,
        target_modules=_targets(opened, merged.adapter.modules),
        dropout=float(configs[0].get("lora_dropout") or 0.0),
        settings=_kept(configs, tied=bool(tied)),
        saved=saved | copies,
        embeddings=frozenset[str]().union(*(one.embeddings for one in opened.values())),
    )
    full = {folder: widened(one, sizes, torch.float64) for folder, one in adapters.items()}
    told = _told(out, rule, opened, full, shares, merged)
    return replace(told, saved=tuple(saved), copied=tuple(copies), renamed=renamed)


def _kept(configs: Sequence[Mapping[str, Any]], *, tied: bool) -> dict[str, Any]:
    """Return the settings that the result has from the folders; a tie is needed to read it back."""
    settings = {key: one[key] for one in reversed(configs) for key in ALIKE if one.get(key)}
    tie = tied or ("modules_to_save" in settings and configs[0].get("ensure_weight_tying"))
    return settings | ({"ensure_weight_tying": True} if tie else {})


def _tied_again(adapter: Adapter, tied: Mapping[str, str]) -> Adapter:
    """Return the adapter with every tied head's factors those of its embedding, transposed.

    The two are one update: a rule gives the same product for both, up to the seed and rounding.
    """
    a, b = dict(adapter.a), dict(adapter.b)
    for head, embedding in tied.items():
        a[head], b[head] = b[embedding].T.contiguous(), a[embedding].T.contiguous()
    scales = {m: adapter.scales[tied.get(m, m)] for m in adapter.modules}
    return replace(adapter, a=a, b=b, scales=scales)


def _open(
    folders: Sequence[Path], base: str
) -> tuple[dict[str, StoredAdapter], str, dict[str, str]]:
    """Return the folders, checked and in one spelling, their base's name, and what was renamed."""
    read = [open_adapter(folder, base="base") for folder in folders]
    name = base_name({str(one.folder): one.config for one in read}, base)
    spelt, renamed = common_spelling(read, base)
    opened = {str(one.folder): one for one in spelt}
    check_common_modules({folder: one.shapes for folder, one in opened.items()})
    check_alike(opened)
    for one in spelt:
        check_finite(one)
    check_copies(opened)
    return opened, name, renamed


def _whole(
    opened: Mapping[str, StoredAdapter], shares: Mapping[str, float]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the means of whole trained modules, and the copies of the base's weights."""
    saved = {key: _mean(opened, shares, key) for key in next(iter(opened.values())).saved}
    copies: dict[str, Tensor] = {}
    for one in opened.values():
        for key, value in one.copies.items():
            held = copies.get(key)
            finer = held is not None and torch.promote_types(held.dtype, value.dtype) == held.dtype
            copies[key] = held if held is not None and finer else value
    return saved, copies


def _mean(opened: Mapping[str, StoredAdapter], shares: Mapping[str, float], key: str) -> Tensor:
    """Return the weighted mean of a whole module's parameter, summed in float64."""
    first = next(iter(opened.values())).saved[key]
    if not first.is_floating_point():
        message = f"modules_to_save: {key} holds {first.dtype}, which has no mean; leave it out"
        raise ModelError(message)
    total = torch.zeros(first.shape, dtype=torch.float64)
    for folder, one in opened.items():
        total += shares[folder] * one.saved[key].to(torch.float64)
    if not bool(torch.isfinite(total).all()):
        message = f"modules_to_save: {key} holds a NaN or an infinity; leave that folder out"
        raise ModelError(message)
    return total.to(common_format(one.saved[key] for one in opened.values()))


def _targets(opened: Mapping[str, StoredAdapter], modules: Sequence[str]) -> list[str]:
    """Return the folders' common target list where it is complete, else the full module names."""
    found = []
    for one in opened.values():
        listed = one.config.get("target_modules")
        narrowed = any(
            one.config.get(key) not in (None, [], "", False)
            for key in ("exclude_modules", "layers_to_transform", "layers_pattern")
        )
        whole = isinstance(listed, list) and not narrowed and set(one.adapter.a) == set(modules)
        found.append(tuple(sorted(listed)) if whole and listed else ())
    complete = all(any(f".{m}".endswith(f".{end}") for end in found[0]) for m in modules)
    same = found[0] and len(set(found)) == 1 and complete
    return list(found[0]) if same else sorted(modules)


def _told(
    out: Path,
    rule: str,
    opened: Mapping[str, StoredAdapter],
    full: Mapping[str, Adapter],
    shares: Mapping[str, float],
    merged: Merged,
) -> FolderMerge:
    """Return the merge's figures."""
    parts = tuple(
        MergePart(
            folder=folder,
            weight=shares[folder],
            norm=_norm(one.adapter),
            ranks=_ranks([size[1] for size in one.shapes.values()]),
            modules=len(one.shapes),
        )
        for folder, one in opened.items()
    )
    used = {folder: share for folder, share in shares.items() if share > 0}
    error = target = 0.0
    for module in merged.adapter.modules:
        wanted = maths.target(full, used, module)
        apart = maths.sum_products([maths.delta(merged.adapter, module, -1.0), wanted])
        error += maths.norm(apart) ** 2
        target += maths.norm(wanted) ** 2
    return FolderMerge(
        out=str(out),
        rule=rule,
        parts=parts,
        norm=_norm(merged.adapter),
        ranks=_ranks([factor.shape[0] for factor in merged.adapter.a.values()]),
        modules=len(merged.adapter.modules),
        target_norm=target**0.5,
        error=(error / target) ** 0.5 if target > 0 else None,
        report=dict(merged.report),
        saved=(),
    )


def _norm(adapter: Adapter) -> float:
    return math.hypot(*(maths.norm(maths.delta(adapter, name)) for name in adapter.modules))


def _ranks(found: Sequence[int]) -> tuple[int, int]:
    return min(found), max(found)
