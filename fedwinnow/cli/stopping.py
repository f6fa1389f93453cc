"""End a command cleanly on SIGINT, SIGTERM and SIGHUP, with the shell's code 128 + number.

The signal is raised as an exception in the main thread, so that every block clears up after itself.
A computation in C hears of no exception: after ``LONGEST`` seconds a thread ends the process, and
the watchdog (:mod:`fedwinnow.curation.watchdog`) clears up.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from fedwinnow.cli.options import typed_command

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONGEST = 6.0
"""Longest time to clear up, seconds; a batch system kills after its own, 10 s or more."""

_RETRY = 0.1
"""Time until a signal is tried again that came while an extension was imported, seconds."""


class StoppedError(SystemExit):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        """Take the signal's number; the exit code follows from it."""
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name
        self.saved = ""
        """What was saved, and how to go on, in words."""


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Raise :class:`StoppedError` inside the block at a signal; an ignored one stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may listen
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard, told = socket.socketpair()
    told.settimeout(0)
    for number in listened():
        signal.signal(number, _raise)
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_late, args=(heard,), name="stopping", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        told.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def listened() -> list[signal.Signals]:
    """Return the signals that this process was not started to ignore (``nohup``)."""
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def saying(saved: str) -> Iterator[None]:
    """Attach to a stop inside the block what was saved, and how to go on."""
    try:
        yield
    except StoppedError as error:
        error.saved = error.saved or saved
        raise


def resumed_by(folder: object) -> str:
    """Return the words for a run in ``folder`` that ``--resume`` goes on with."""
    words = typed_command()
    again = words if "--resume" in words.split() else f"{words} --resume"
    return f"what was committed is kept in {folder}; go on with: {again}"


def _raise(number: int, frame: FrameType | None) -> None:
    if _is_in_an_extension(frame):  # C++ that an exception runs into aborts the process
        threading.Timer(_RETRY, os.kill, (os.getpid(), number)).start()
        return
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # the second one does not stop the clearing up
    raise StoppedError(number)


def _is_in_an_extension(frame: FrameType | None) -> bool:
    """Return whether a module of C or C++ is being imported below a frame."""
    while frame is not None:
        if frame.f_code.co_qualname.startswith("ExtensionFileLoader."):
            return True
        frame = frame.f_back
    return False


def _end_late(heard: socket.socket) -> None:
    """End the process where the main thread has not done so in time."""
    with heard:
        while numbers := heard.recv(64):
            for number in filter(SIGNALS.__contains__, numbers):
                time.sleep(LONGEST)
                with suppress(OSError):
                    name = signal.Signals(number).name
                    line = f"stopped by {name} in the middle of a computation\n"
                    os.write(sys.stderr.fileno(), line.encode())
                os._exit(128 + number)
