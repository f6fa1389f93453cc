"""Measure time and memory of a child process, stage by stage, from its parent.

The child reports when a stage begins and ends, and waits each time for its parent. In between the
parent reads the child's anonymous memory every few milliseconds, so that nothing in the child, not
even its own counting, can hide a peak. The child reports the kernel's own count (resident, mapped
files included).
"""

import gc
import json
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass

import numpy as np
import torch

from fedwinnow.curation.errors import RunError
from fedwinnow.simulations.benchmarks.instruments.process_memory import (
    anonymous,
    environment,
    peak_resident,
    reset_peak,
)

Say = Callable[[str], None]
"""Callback for lines of progress."""
_EVERY = 0.005
_LEAVES = frozenset({str, bytes, int, float, bool, type(None)})
_GRAIN = 16
"""Python's allocator hands out multiples of this number of bytes."""


@dataclass(slots=True, kw_only=True)
class Stage:
    """Measurements of one stage of a child process."""

    name: str
    seconds: float
    """Wall time."""
    peak_bytes: int
    """Peak anonymous memory that the parent saw."""
    resident_bytes: int
    """Peak resident memory by the kernel, pages of mapped files included."""
    held: Mapping[str, float] = field(default_factory=dict)
    """Memory that the child reports to hold at the end, in bytes by name."""
    spent: Mapping[str, float] = field(default_factory=dict)
    """Processor time of parts of the stage, seconds by name, where the child reports it."""

    @property
    def beyond_bytes(self) -> float:
        """Return the peak beyond what is held, in bytes."""
        return self.peak_bytes - sum(self.held.values())


def watch(module: str, *words: str, told: Callable[[Stage], None] = lambda _: None) -> list[Stage]:
    """Run ``python -m module words …`` and measure its stages; call ``told`` at the end of each.

    Raises:
        RunError: the child ended with an error.
    """
    command = [sys.executable, "-m", module, *words]
    with subprocess.Popen(  # noqa: S603 - our own module
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True
    ) as child:
        stages = []
        for one in _stages(child):
            told(one)
            stages.append(one)
    if child.returncode:
        message = f"{module} {' '.join(words)}: ended with {child.returncode}; its error is above"
        raise RunError(message)
    return stages


def say(told: Say, size: str, one: Stage) -> None:
    """Report a stage that has ended."""
    told(f"{size}: {one.name} took {one.seconds:.1f} s, at most {one.peak_bytes / 1e6:.0f} MB")


def _stages(child: "subprocess.Popen[str]") -> Iterator[Stage]:
    most = peak = 0
    if child.stdin is None or child.stdout is None:  # pragma: no cover - both are pipes
        message = "the child has no pipes"
        raise RunError(message)
    while True:
        ready, _, _ = select.select([child.stdout], [], [], _EVERY)
        most = max(most, anonymous(child.pid))
        if not ready:
            continue
        line = child.stdout.readline()
        if not line:
            return
        said = json.loads(line)
        if said["is"] == "end":
            peak = most
        elif said["is"] == "held":
            yield Stage(peak_bytes=peak, **said["stage"])
        most = 0
        child.stdin.write("\n")
        child.stdin.flush()


@contextmanager
def stage(
    name: str, spent: Mapping[str, float] | None = None
) -> Iterator[dict[str, Callable[[], float]]]:
    """Run a stage in the child; functions put into the mapping count the bytes held afterwards.

    This count is left out of the stage's time and peak. ``spent`` is read at the end: processor
    seconds of the stage's parts.
    """
    gc.collect()
    reset_peak()
    _say({"is": "begin"})
    held: dict[str, Callable[[], float]] = {}
    start = time.perf_counter()
    yield held
    seconds, resident = time.perf_counter() - start, peak_resident()
    _say({"is": "end"})
    told = {what: count() for what, count in held.items()}
    words = {"name": name, "seconds": seconds, "resident_bytes": resident, "held": told}
    words["spent"] = dict(spent or {})
    held.clear()
    _say({"is": "held", "stage": words})


def size_of(*things: object) -> float:
    """Return the bytes of arrays, tensors, numbers, texts, collections and dataclasses, in depth.

    An object counts as much as the allocator takes for it: an id of 81 bytes takes 96.
    """
    seen: set[int] = set()
    total, rest = 0, list(things)
    while rest:
        thing = rest.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        total += -(-sys.getsizeof(thing) // _GRAIN) * _GRAIN
        if type(thing) in _LEAVES:
            continue
        if isinstance(thing, torch.Tensor):
            total += thing.nbytes
        elif isinstance(thing, np.ndarray):
            total += 0 if thing.base is None else thing.nbytes
        elif isinstance(thing, (tuple, list)):
            rest.extend(thing)
        elif isinstance(thing, Mapping):
            rest.extend((*thing.keys(), *thing.values()))
        elif is_dataclass(thing):
            rest.extend(getattr(thing, one.name) for one in fields(thing))
    return float(total)


def _say(words: Mapping[str, object]) -> None:
    print(json.dumps(words), flush=True)
    sys.stdin.readline()
