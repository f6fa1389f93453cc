"""Watch one process, and clear up after it: end what it started, remove its scratch.

This file is also the program of the watchdog, a small child in a session of its own. It waits
until its parent is gone, whatever ended it (SIGKILL and the out-of-memory killer too), ends every
process that bears the parent's mark or descends from one that does, removes the folders and stale
sockets that the parent had told it of, and runs the commands that undo what the parent began in
another's process, such as a Flower run in a SuperLink. The mark is an entry of the environment with
a random name, so that no process of anybody else bears it. A signal goes to a pidfd, whose process
was identified by its start time before: a process id that was given away again is never hit.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil

GRACE = 1.0
"""Pause between SIGTERM and SIGKILL, seconds."""
_LONGEST = 8.0
"""Longest time in which processes are sought again and again, seconds."""
_LOOK = 1.0
"""Pause between two looks at the parent, seconds; a closed pipe wakes the watchdog at once."""


def marked(entry: str) -> list[psutil.Process]:
    """Return the processes with ``NAME=value…`` in their environment, and their descendants.

    Descendants count because a process may overwrite its environment with a title of its own.
    """
    found: dict[int, psutil.Process] = {}
    children: dict[int, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        try:
            children.setdefault(process.ppid(), []).append(process)
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            name, _, value = entry.partition("=")
            if process.environ().get(name, "").startswith(value):
                found[process.pid] = process
        except (psutil.Error, OSError):
            continue  # it has ended, or we may not read it
    waiting = list(found)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child.pid not in found and child.pid != os.getpid():
                found[child.pid] = child
                waiting.append(child.pid)
    found.pop(os.getpid(), None)
    return [process for process in found.values() if _lives(process)]


def end_marked(entry: str, *, grace: float = GRACE) -> list[psutil.Process]:
    """End the marked processes: SIGTERM, then SIGKILL after ``grace``; return those that stay."""
    began, told = time.monotonic(), set[int]()
    while (left := marked(entry)) and time.monotonic() - began < grace + _LONGEST:
        late = time.monotonic() - began >= grace
        for process in left:
            if late or process.pid not in told:
                send_signal(process, signal.SIGKILL if late else signal.SIGTERM)
                told.add(process.pid)
        time.sleep(0.05)
    return left


def send_signal(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to a process, never to another one that got its process id since."""
    with contextlib.suppress(psutil.Error, OSError):  # it has ended, or is another user's
        if not hasattr(signal, "pidfd_send_signal"):
            process.send_signal(number)  # compares the start time too
            return
        handle = os.pidfd_open(process.pid)
        try:
            if process.is_running():  # the same start time: the handle is this process's
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def remove(path: Path) -> None:
    """Remove scratch of this user: a folder, a half-written file, or a socket without listener."""
    try:
        found = path.lstat()
    except OSError:
        return
    if found.st_uid != os.getuid():
        return
    if stat.S_ISDIR(found.st_mode):
        shutil.rmtree(path, ignore_errors=True)
    elif stat.S_ISREG(found.st_mode):
        with contextlib.suppress(OSError):
            path.unlink()
    elif stat.S_ISSOCK(found.st_mode):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(1.0)
            try:
                caller.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:
                return  # another process listens there, and is busy


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _run(arguments: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(  # noqa: S603 - a command of our own parent, no shell
        arguments,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def watch(parent: int, entry: str) -> None:
    """Read paths and commands from standard input until the parent is gone; then clear up.

    A line of the input is a JSON list: "add" or "drop", and a path; or "run" or "spare", and a
    command (arguments and environment) that undoes what the parent began elsewhere.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a service manager tells all; this ends by itself
    paths: dict[str, None] = {}
    commands: dict[str, None] = {}
    buffer, is_open = b"", True
    while is_open and (os.getppid() == parent or select.select([0], [], [], 0)[0]):
        if not select.select([0], [], [], _LOOK)[0]:
            continue
        data = os.read(0, 65536)
        is_open = bool(data)
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            verb, value = json.loads(line)
            kind = paths if verb in {"add", "drop"} else commands
            if verb in {"add", "run"}:
                kind[value] = None
            else:
                kind.pop(value, None)
    end_marked(entry)
    undoing = [_run(*json.loads(command)) for command in commands]
    for path in paths:
        remove(Path(path))
    for process in undoing:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_LONGEST)
        process.kill()


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2])
