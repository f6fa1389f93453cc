"""Read, write and merge PEFT LoRA adapters."""

from collections.abc import Mapping
from pathlib import Path

from fedwinnow.curation.adapters import peft_folder
from fedwinnow.curation.adapters.peft_config import read_config
from fedwinnow.curation.datatypes import Adapter, is_fingerprint
from fedwinnow.curation.errors import ConfigError, OutputError, PluginError
from fedwinnow.server.adapter_tools.merge_adapters import merge_adapters
from fedwinnow.strategies import registry
from fedwinnow.strategies.interfaces.merging import Merged, Merging, SparseMerging


def load_adapter(folder: str | Path, *, base: str = "") -> Adapter:
    """Read a PEFT LoRA folder into memory; no model is loaded.

    Args:
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: Name of the base model, where it has two; "" takes what the folder says.

    Returns:
        Factors A of shape (rank, inputs) and B of shape (outputs, rank) by module, in the folder's
        number format, and the scale s of ΔW = s · B A.

    Raises:
        ModelError: there is no adapter in the folder.
        IncompatibleAdapterError: it is no plain LoRA adapter, or holds whole modules.
    """
    named = str(read_config(Path(folder)).get("base_model_name_or_path") or "")
    return peft_folder.load_adapter(Path(folder), base=base or named)


def save_adapter(adapter: Adapter, folder: str | Path, *, base: str = "") -> Path:
    """Write an adapter as a PEFT folder, which ``PeftModel.from_pretrained`` reads.

    The folder is written whole or not at all.

    Args:
        adapter: From :func:`load_adapter`, or ``merge(…).adapter``.
        folder: A new or empty folder, or that of an adapter, which is replaced.
        base: Hub name or folder of the base model; "" takes the adapter's own.

    Returns:
        The folder.

    Raises:
        ConfigError: the adapter does not name its base, and ``base`` does not either.
        OutputError: the folder cannot be written, or holds something else.
    """
    target, name = Path(folder), base or adapter.base
    if not name or (not base and is_fingerprint(name)):
        message = (
            "save_adapter: expected the name of the base model, got "
            f"{'its fingerprint' if name else 'none'}; give base= its hub name or folder"
        )
        raise ConfigError(message)
    other = target.is_dir() and any(target.iterdir())
    if target.exists() and (target.is_file() or other) and not _holds_adapter(target):
        message = f"{target}: there is something else already; choose a new folder"
        raise OutputError(message)
    peft_folder.export_adapter(adapter, target, base_name=name, target_modules=adapter.modules)
    return target


def merge(
    adapters: Mapping[str, Adapter],
    *,
    rule: str | Merging = "core_svd",
    weights: Mapping[str, float] | None = None,
) -> Merged:
    """Merge LoRA adapters of one base into one; ranks, scales and modules may differ.

    The rule takes for the adapter before training the A and the scale of the largest rank of each
    module, with B = 0; a module that an adapter lacks counts as its zero update. The result has the
    number format that holds every adapter's numbers exactly, whatever their order.

    Args:
        adapters: Name → adapter.
        rule: Name of a merging rule, or one from ``build("merging", …)``, with settings.
        weights: Name → weight, at least 0 and not all 0, brought to sum 1; None: equal.

    Returns:
        ``adapter``; ``report``, the rule's figures, such as ``discarded_energy``, a share in
        [0, 1]; and ``change``, what a rule such as ``fedex`` adds to the base, else None.

    Raises:
        ConfigError: there is no adapter, or weights are not those of the adapters.
        ModelError: adapters are of different bases, differ in a module's outputs or inputs, or one
            has no module in common with another.
        PluginError: the rule is unknown, needs a setting, or merges sparse differences.
        IncompatibleAdapterError: the rule cannot merge these.
        EmptySelectionError: all weights are 0.
        NonFiniteError: a factor or a weight is NaN or infinite.
        ProtocolError: a weight is negative.
    """
    merging = registry.build("merging", rule, {}) if isinstance(rule, str) else rule
    if isinstance(merging, SparseMerging):
        message = (
            f"merge: rule {rule!r} merges sparse differences, and these are LoRA adapters; choose "
            "core_svd, or use fedwinnow merge on SHiRA folders"
        )
        raise PluginError(message)
    given = dict.fromkeys(adapters, 1.0) if weights is None else weights
    shares = {name: float(weight) for name, weight in given.items()}
    return merge_adapters(adapters, shares, merging)


def _holds_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()
