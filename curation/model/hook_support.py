"""Check whether hooks work on a model: torch.compile, FSDP, checkpoint wrappers.

A hook registered on a compiled model is silently ignored, the weights of a sharded model exist only
while its own hooks run, and a checkpoint wrapper runs its layers twice.

Sources: torch 2.13, ``torch.compile`` (``OptimizedModule._orig_mod``, ``Module.compile``),
``torch.distributed.fsdp`` (``FSDPModule``, ``FullyShardedDataParallel``) and
``torch.distributed.algorithms._checkpoint.checkpoint_wrapper``.
"""

from torch import nn


def is_compiled(model: nn.Module) -> bool:
    """Return whether the model, or a part of it, went through ``torch.compile``."""
    return any(
        "_orig_mod" in part._modules or part._compiled_call_impl is not None  # noqa: SLF001 - torch has no other way to ask
        for part in model.modules()
    )


def why_no_hooks(model: nn.Module) -> str:
    """Return why hooks on a model's layers would see nothing, or too much; "" where they work."""
    if is_compiled(model):
        return "a compiled model ignores hooks"
    for part in model.modules():
        names = {kind.__name__ for kind in type(part).__mro__}
        if names & {"FSDPModule", "FullyShardedDataParallel"}:
            return "a model sharded by FSDP has hooks of its own on every layer"
        if "CheckpointWrapper" in names:
            return "a layer in a checkpoint wrapper runs twice, and its hooks too"
    return ""
