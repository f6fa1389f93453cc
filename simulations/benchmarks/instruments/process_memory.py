"""Memory of a process as Linux counts it: resident, anonymous, and the peak since it was reset.

Anonymous memory is what a process asked for; resident memory also counts the pages of files that it
maps, which the kernel may take back at any time.
"""

import os
import resource
from collections.abc import Mapping
from pathlib import Path

RESIDENT, PEAK = "VmRSS", "VmHWM"
"""Figures of :func:`figure`."""
_PAGE = resource.getpagesize()


def can_be_measured() -> bool:
    """Whether this system tells; Linux does."""
    return Path("/proc/self/clear_refs").exists()


def figure(key: str, process: int | str = "self") -> int:
    """A figure of a process, in bytes; 0 where the process has ended."""
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    lines = [line for line in text.splitlines() if line.startswith(f"{key}:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def anonymous(process: int | str = "self") -> int:
    """Anonymous memory of a process, in bytes; 0 where it has ended.

    Resident less shared pages of ``statm``: the kernel's ``RssAnon``, at a tenth of the price of
    reading it from ``status`` hundreds of times a second.
    """
    try:
        text = Path(f"/proc/{process}/statm").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    _, resident, shared, *_ = text.split()
    return (int(resident) - int(shared)) * _PAGE


def reset_peak() -> None:
    """Let this process's peak begin anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def environment() -> Mapping[str, str]:
    """Of a child process whose memory is measured: what it frees goes back at once."""
    return os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "ARROW_DEFAULT_MEMORY_POOL": "system"}
