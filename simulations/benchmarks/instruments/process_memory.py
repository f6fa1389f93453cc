"""Memory of a process as Linux counts it: resident, anonymous, and the peak since it was reset.

Anonymous memory is what a process asked for; resident memory also counts the pages of files that it
maps, which the kernel may take back at any time. psutil tells both; the peak and its reset it
lacks, so they are read from and written to ``/proc``.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import psutil


def can_be_measured() -> bool:
    """Return whether this system tells the peak and lets it be reset; Linux does."""
    return Path("/proc/self/clear_refs").exists()


def resident(process: int | None = None) -> int:
    """Return the resident memory of a process (None: this one), in bytes; 0 where it has ended."""
    try:
        return int(psutil.Process(process).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def anonymous(process: int) -> int:
    """Return the anonymous memory of a process, in bytes; 0 where it has ended.

    Resident less shared pages of ``statm``: the kernel's ``RssAnon``, at a tenth of the price of
    reading it from ``status`` hundreds of times a second.
    """
    try:
        memory = psutil.Process(process).memory_info()
    except psutil.NoSuchProcess:
        return 0
    return int(memory.rss - memory.shared)


def peak_resident() -> int:
    """Return the most resident memory of this process since :func:`reset_peak`, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    """Let this process's peak begin anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def environment() -> Mapping[str, str]:
    """Of a child process whose memory is measured: what it frees goes back at once."""
    return os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "ARROW_DEFAULT_MEMORY_POOL": "system"}
