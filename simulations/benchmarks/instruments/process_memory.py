"""Read the memory of a process as Linux counts it: resident, anonymous, peak since the last reset.

Anonymous memory is what a process asked for; resident memory also counts the pages of files that it
maps, which the kernel may take back at any time. psutil gives both. It lacks the peak and its
reset, so these use ``/proc``.
"""

from collections.abc import Mapping
from pathlib import Path

import psutil

from fedwinnow.curation.process_guard import child_environment


def can_be_measured() -> bool:
    """Return whether this system can read and reset the peak; Linux can."""
    return Path("/proc/self/clear_refs").exists()


def resident(process: int | None = None) -> int:
    """Return the resident memory of a process (None: this one), in bytes; 0 where it has ended."""
    try:
        return int(psutil.Process(process).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def anonymous(process: int) -> int:
    """Return the anonymous memory of a process, in bytes; 0 where it has ended.

    Resident minus shared pages of ``statm`` is the kernel's ``RssAnon``, at a tenth of the cost of
    reading it from ``status`` hundreds of times a second.
    """
    try:
        memory = psutil.Process(process).memory_info()
    except psutil.NoSuchProcess:
        return 0
    return int(memory.rss - memory.shared)


def peak_resident() -> int:
    """Return the peak resident memory of this process since :func:`reset_peak`, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    """Reset this process's peak."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def environment() -> Mapping[str, str]:
    """Return the environment of a measured child process, which returns freed memory at once."""
    return child_environment() | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }
