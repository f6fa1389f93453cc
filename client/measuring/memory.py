"""Memory of a pass: what running out of it looks like, how much there is, how much a token takes.

On a GPU it is measured: the allocator tells the peak of a batch. On a CPU nothing tells it, and a
system that runs out may kill the process without a word, so it is estimated from what a pass keeps:

    bytes a token ≈ 4 · bytes of a number · Σ_l out_l  +  12 · vocabulary     with a graph
                    4 · bytes of a number · max_l out_l + 12 · vocabulary     without

over the linear layers l below the head, out_l their outputs: norms, activations and attention keep
about as much again as the linear layers put out, and a gradient is as large as what it is of. The
head gives logits, their float32 copy and their gradient.

Reference:
    V. Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models, MLSys
    2023, section 4.1, https://arxiv.org/abs/2205.05198
"""

import gc
from pathlib import Path
from typing import Protocol

import psutil
import torch

_ELSEWHERE = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
"""What a plain RuntimeError says where memory ran out."""
_COPIES = 4
"""Numbers held for each that a linear layer puts out; see the head of this file."""
_LOGIT_BYTES = 12
_GROUP = Path("/sys/fs/cgroup")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ELSEWHERE)


def release_memory() -> None:
    """Free what nobody holds any more, so that a smaller batch finds it."""
    gc.collect()  # frames of the failed pass may hold each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def available_bytes(group: Path = _GROUP) -> int | None:
    """Memory of the host that this process may take without pushing others out; None: unknown.

    The least of what the system says is available and what the container's group has left.
    """
    found = [_system(), _container(group)]
    return min((one for one in found if one is not None), default=None)


def _system() -> int | None:
    try:
        return int(psutil.virtual_memory().available)
    except OSError:  # no /proc
        return None


def _container(group: Path) -> int | None:
    """What a control group (version 2) leaves; None where there is none, or no limit."""
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = (group / "memory.current").read_text(encoding="ascii").strip()
        return max(0, int(limit) - int(used))
    except (OSError, ValueError):  # no group; "max"
        return None


def token_bytes(model: torch.nn.Module, *, graph: bool) -> int:
    """About how many bytes a pass holds at its peak for each token of a batch.

    Args:
        model: A causal language model; its attention makes no table of lengths by lengths.
        graph: Whether a backward pass follows.
    """
    ask = getattr(model, "get_output_embeddings", None)
    head = None if ask is None else ask()
    layers = [
        part for part in model.modules() if isinstance(part, torch.nn.Linear) and part is not head
    ]
    outputs = [part.out_features for part in layers]
    floating = [p.element_size() for p in model.parameters() if p.is_floating_point()]
    held = (sum(outputs) if graph else max(outputs, default=0)) * _COPIES
    vocabulary = getattr(head, "out_features", 0)
    return max(1, held * max(floating, default=4) + _LOGIT_BYTES * vocabulary)


class Gauge(Protocol):
    """Tells what a batch took of a device's memory."""

    def begin(self) -> None:
        """Called before a batch."""

    def used(self) -> int:
        """Most bytes above those of :meth:`begin` that were ever held since."""

    def free(self) -> int:
        """Bytes that could be taken now."""


class CudaGauge:
    """What torch's allocator and the driver tell of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        """Watch a device."""
        self._device, self._before = device, 0

    def begin(self) -> None:
        """Note what is held, and start the peak anew."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def used(self) -> int:
        """Peak since :meth:`begin`, above what was held then."""
        return max(0, torch.cuda.max_memory_allocated(self._device) - self._before)

    def free(self) -> int:
        """What the driver has, and what the allocator holds without using it."""
        spare, _ = torch.cuda.mem_get_info(self._device)
        idle = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(spare) + int(idle)
