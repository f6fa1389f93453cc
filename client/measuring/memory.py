"""Recognise out-of-memory errors, and measure or estimate the memory of a pass.

On a GPU memory is measured: the allocator reports the peak of a batch. On a CPU nothing reports it,
and a system that runs out may kill the process without a word, so memory is estimated from what a
pass keeps:

    bytes a token ≈ 4 · bytes of a number · Σ_l out_l  +  12 · vocabulary     with a graph
                    4 · bytes of a number · max_l out_l + 12 · vocabulary     without

over the linear layers l below the head, out_l their outputs: norms, activations and attention keep
about as much again as the linear layers put out, and a gradient is as large as its tensor. The head
gives logits, their float32 copy and their gradient.

Reference:
    V. Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models, MLSys
    2023, section 4.1, https://arxiv.org/abs/2205.05198
"""

import gc
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

_ELSEWHERE = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
"""Texts by which a plain RuntimeError says that memory ran out."""
_COPIES = 4
"""Numbers held for each output of a linear layer; see the head of this file."""
_LOGIT_BYTES = 12
_GROUP = Path("/sys/fs/cgroup")


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ELSEWHERE)


def release_memory() -> None:
    """Free memory that nothing refers to, so that a smaller batch can use it."""
    gc.collect()  # frames of the failed pass may hold each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def available_bytes(group: Path = _GROUP) -> int | None:
    """Return the host memory that this process may take without displacing others, or None.

    The lesser of the system's available memory and what the container's control group leaves;
    None where both are unknown.
    """
    found = [_system(), _container(group)]
    return min((one for one in found if one is not None), default=None)


def _system() -> int | None:
    try:
        return int(psutil.virtual_memory().available)
    except OSError:  # no /proc
        return None


def _container(group: Path) -> int | None:
    """Return what a control group (version 2) leaves; None where there is none, or no limit."""
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = (group / "memory.current").read_text(encoding="ascii").strip()
        return max(0, int(limit) - int(used))
    except (OSError, ValueError):  # no group; "max"
        return None


def token_bytes(model: torch.nn.Module, *, graph: bool) -> int:
    """Estimate the bytes that a pass holds at its peak for each token of a batch.

    Args:
        model: A causal language model whose attention builds no matrix of length by length.
        graph: Whether a backward pass follows.
    """
    ask = getattr(model, "get_output_embeddings", None)
    head = None if ask is None else ask()
    outputs = [_width(part) for part in model.modules() if part is not head]
    floating = [p.element_size() for p in model.parameters() if p.is_floating_point()]
    held = (sum(outputs) if graph else max(outputs, default=0)) * _COPIES
    vocabulary = getattr(head, "out_features", 0)
    return max(1, held * max(floating, default=4) + _LOGIT_BYTES * vocabulary)


def _width(part: Any) -> int:  # noqa: ANN401 - transformers' layers share no typed base
    """Return the outputs of a linear layer, GPT-2's ``Conv1D`` included; 0 for other modules."""
    if isinstance(part, torch.nn.Linear):
        return part.out_features
    return int(part.nf) if type(part).__name__ == "Conv1D" else 0


class Gauge(Protocol):
    """Gauge of the memory that a batch takes on a device."""

    def begin(self) -> None:
        """Start measuring, before a batch."""

    def used(self) -> int:
        """Return the peak in bytes since :meth:`begin`, above what was held then."""

    def free(self) -> int:
        """Return the bytes that could be taken now."""


class CudaGauge:
    """Gauge of a CUDA device, by torch's allocator and the driver."""

    def __init__(self, device: torch.device) -> None:
        """Watch a device."""
        self._device, self._before = device, 0

    def begin(self) -> None:
        """Note the bytes held, and reset the peak."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def used(self) -> int:
        """Return the peak in bytes since :meth:`begin`, above what was held then."""
        return max(0, torch.cuda.max_memory_allocated(self._device) - self._before)

    def free(self) -> int:
        """Return the driver's free bytes and what the allocator holds without using it."""
        spare, _ = torch.cuda.mem_get_info(self._device)
        idle = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(spare) + int(idle)
