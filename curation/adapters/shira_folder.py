"""Read and write sparse differences in PEFT's SHiRA folders, whole or not at all.

For each module with m outputs and n inputs, such a folder holds the values of r (m + n) entries of
its weight and their rows and columns, but not m and n. These follow where the entries of all
folders reach the last row and the last column, as (last row + 1) + (last column + 1) = m + n then;
otherwise they are read from the base model's own files. A written folder is padded with zeros to
the smallest r that holds every module. No model and no PEFT is needed.

Reference:
    K. Bhardwaj et al., Sparse High Rank Adapters, NeurIPS 2024, https://arxiv.org/abs/2406.13175
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedwinnow.curation.adapters.base_files import Shape, base_shapes
from fedwinnow.curation.adapters.peft_config import read_config, shown
from fedwinnow.curation.adapters.peft_folder import write_folder
from fedwinnow.curation.adapters.peft_keys import PREFIX, module_name
from fedwinnow.curation.adapters.peft_reader import why_unreadable
from fedwinnow.curation.datatypes import SparseAdapter
from fedwinnow.curation.errors import IncompatibleAdapterError, ModelError

READ = frozenset(
    {
        *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
        *("revision", "inference_mode", "r", "target_modules", "init_weights"),
        *("mask_type", "random_seed", "runtime_config"),
    }
)
"""Keys of the configuration that are read, or do not say what a weight is; any other must be
empty."""
KIND = "SHIRA"
_INDICES, _VALUES, _WEIGHT = ".shira_indices", ".shira_weight", ".weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEntries:
    """Content of a SHiRA folder: its configuration and its entries by module."""

    folder: Path
    config: Mapping[str, Any]
    places: Mapping[str, Tensor]
    """Module → (2, entries) int64: rows and columns."""
    values: Mapping[str, Tensor]
    """Module → the entries' values."""
    sums: Mapping[str, int]
    """Module → m + n."""


def open_entries(folder: Path) -> StoredEntries:
    """Read a PEFT SHiRA folder into memory.

    Raises:
        ModelError: it is no adapter, no plain SHiRA, or not whole; the message names the folder
            and the setting or array.
    """
    config = read_config(folder)
    if config.get("peft_type") != KIND:
        message = (
            f"{folder}: expected peft_type = {KIND!r}, a sparse difference of weights; "
            f"got {shown(config.get('peft_type'))}; merge it by a rule for LoRA "
            "factors, such as core_svd"
        )
        raise ModelError(message)
    odd = [key for key in sorted(set(config) - READ) if config[key]]
    if odd:
        message = f"{folder}: expected {odd[0]} = nothing; got {odd[0]} = {shown(config[odd[0]])}"
        raise ModelError(message)
    rank = config.get("r")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        message = f"{folder}: expected a whole number r above 0, got {shown(rank)}"
        raise ModelError(message)
    places, values = _arrays(folder)
    for module in sorted(values):
        _check(folder, module, places[module], values[module], rank)
    sums = {module: len(values[module]) // rank for module in values}
    return StoredEntries(folder=folder, config=config, places=places, values=values, sums=sums)


def _arrays(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    path = folder / "adapter_model.safetensors"
    found: dict[str, dict[str, Tensor]] = {_INDICES: {}, _VALUES: {}}
    try:
        with safe_open(path, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - no mapping
                kind = next((end for end in found if key.endswith(end)), None)
                if kind is None:
                    message = f"{folder}: {key} is no part of a sparse difference; save it without"
                    raise ModelError(message)
                module = module_name(key).removesuffix(kind)
                if module in found[kind]:
                    message = f"{folder}: two keys come to {module}, one is {key}; save one adapter"
                    raise ModelError(message)
                found[kind][module] = opened.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise why_unreadable(path, error) from error
    odd = sorted(set(found[_INDICES]) ^ set(found[_VALUES]))
    if odd or not found[_VALUES]:
        what = f"module {odd[0]} has one" if odd else "there is none"
        message = f"{folder}: expected pairs of indices and weights, but {what}; save it anew"
        raise ModelError(message)
    # PEFT stores whole numbers as floats on some systems.
    return {name: one.to(torch.int64) for name, one in found[_INDICES].items()}, found[_VALUES]


def _check(folder: Path, module: str, places: Tensor, values: Tensor, rank: int) -> None:
    fits = values.ndim == 1 and values.is_floating_point() and len(values) % rank == 0
    if not fits or not len(values) or places.shape != (2, len(values)) or int(places.min()) < 0:
        message = (
            f"{folder}, module {module}: expected r (m + n) floating-point values with r = {rank} "
            f"and as many rows and columns of at least 0, got {tuple(values.shape)} "
            f"{values.dtype} and {tuple(places.shape)}; save it anew"
        )
        raise ModelError(message)


def shapes_of(opened: Sequence[StoredEntries], base: Path | None = None) -> dict[str, Shape]:
    """Return module → outputs and inputs, from the folders' entries or from the base's files.

    Args:
        opened: The folders' entries.
        base: A local model folder with ``*.safetensors``; None: the folders alone.

    Raises:
        ModelError: folders contradict each other or the base, or do not determine a shape.
    """
    known = base_shapes(base) if base is not None else {}
    if base is not None and not known:
        message = f"--base {base}: expected a model folder with *.safetensors, found no weights"
        raise ModelError(message)
    return {
        module: _shape_of(module, [one for one in opened if module in one.sums], known)
        for module in sorted({name for one in opened for name in one.sums})
    }


def _shape_of(module: str, opened: Sequence[StoredEntries], known: Mapping[str, Shape]) -> Shape:
    first = opened[0]
    for one in opened:
        if one.sums[module] != first.sums[module]:
            message = (
                f"{one.folder}, module {module}: expected m + n = {first.sums[module]} as in "
                f"{first.folder}, got {one.sums[module]}; merge adapters of one base"
            )
            raise ModelError(message)
    rows, columns = (max(int(one.places[module][axis].max()) for one in opened) for axis in (0, 1))
    shape = known.get(module, (rows + 1, columns + 1))
    if sum(shape) == first.sums[module] and rows < shape[0] and columns < shape[1]:
        return shape
    whence = "its files say" if module in known else "entries reach"
    message = (
        f"{first.folder}, module {module}: expected m outputs and n inputs with m + n = "
        f"{first.sums[module]}, {whence} {shape[0]} and {shape[1]} (last row {rows}, last column "
        f"{columns}); give --base the folder of the base model that these belong to"
    )
    raise ModelError(message)


def sparse_adapter(
    opened: StoredEntries, shapes: Mapping[str, Shape], *, base: str = ""
) -> SparseAdapter:
    """Convert entries to a sparse difference; zeros, which may be padding, are left out.

    Raises:
        ModelError: an entry is given twice.
    """
    indices, values = {}, {}
    for module, places in opened.places.items():
        flat, order = (places[0] * shapes[module][1] + places[1]).sort()
        if bool((flat.diff() == 0).any()):
            message = f"{opened.folder}, module {module}: an entry is given twice; save it anew"
            raise ModelError(message)
        sorted_values = opened.values[module][order]
        kept = sorted_values != 0
        indices[module + _WEIGHT], values[module + _WEIGHT] = flat[kept], sorted_values[kept]
    own = {module + _WEIGHT: tuple(shapes[module]) for module in opened.places}
    return SparseAdapter(base=base, indices=indices, values=values, shapes=own)


def export_sparse(
    adapter: SparseAdapter,
    folder: Path,
    *,
    base_name: str,
    target_modules: Sequence[str],
    task_type: str | None,
) -> int:
    """Write a difference of matrices as a PEFT SHiRA folder.

    Args:
        adapter: The difference, of parameters that end in ``.weight``.
        folder: The folder to write.
        base_name: Hub name or folder of the base model.
        target_modules: Modules, or ends of their names, that the entries belong to.
        task_type: PEFT's name of the task.

    Returns:
        The r of the folder.

    Raises:
        IncompatibleAdapterError: no r holds every module.
        OutputError: the folder cannot be written, or the disk is full.
    """
    shapes = {name: (shape[0], shape[1]) for name, shape in adapter.shapes.items()}
    rank = max(1, *(-(-len(adapter.indices[name]) // sum(shapes[name])) for name in shapes))
    weights = {}
    for name in adapter.parameters:
        places, values = _padded(adapter, name, rank)
        key = PREFIX + name.removesuffix(_WEIGHT)
        columns = shapes[name][1]
        weights[key + _INDICES] = torch.stack([places // columns, places % columns]).to(torch.int32)
        weights[key + _VALUES] = values
    config = {
        "peft_type": KIND,
        "task_type": task_type,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": rank,
        "mask_type": "random",  # replaced by the stored places when PEFT loads them
        "random_seed": 0,
        "init_weights": True,
        "target_modules": sorted(target_modules),
    }
    write_folder(folder, config, weights)
    return rank


def _padded(adapter: SparseAdapter, name: str, rank: int) -> tuple[Tensor, Tensor]:
    """Fill a parameter's entries up to rank · (m + n) with zeros at free places."""
    outputs, inputs = adapter.shapes[name]
    places, values = adapter.indices[name], adapter.values[name]
    wanted = rank * (outputs + inputs)
    if wanted > outputs * inputs:
        message = (
            f"parameter {name}: the sum needs r = {rank}, which is {wanted} entries, and the "
            f"weight has {outputs * inputs}; merge fewer or sparser adapters"
        )
        raise IncompatibleAdapterError(message)
    free = torch.ones(wanted, dtype=torch.bool)  # this many places hold enough free ones
    free[places[places < wanted]] = False
    filling = free.nonzero().flatten()[: wanted - len(places)]
    padded = torch.cat([places, filling])
    order = padded.argsort()
    return padded[order], torch.cat([values, values.new_zeros(len(filling))])[order]
