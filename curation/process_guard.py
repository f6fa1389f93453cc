"""Mark the processes that this process starts, and make scratch that goes when it goes.

One watchdog (:mod:`fedwinnow.curation.watchdog`) is started at first use. Nothing is put
into this process's own environment for longer than a block: what a notebook starts beside us is
not ours, and is never ended.

A scratch folder holds a locked file ``.owner``. Where process and watchdog were both killed (a
container's end, a power cut), the next process on the machine finds the lock free and removes the
folder, and with it whatever still bears its mark.
"""

import atexit
import contextlib
import fcntl
import json
import logging
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedwinnow.curation import watchdog
from fedwinnow.curation.errors import OutputError

PREFIX = "fw-"
"""First letters of every scratch folder; short, as the path of a socket has at most 107 bytes."""
SHORT = Path("/tmp")  # noqa: S108 - as above; each folder in it is private (mode 0700)
"""Folder for scratch that holds sockets."""
logger = logging.getLogger(__name__)

MARK = "FEDWINNOW_CHILD_OF_"
"""First letters of the name of every mark."""
_OWNER = ".owner"
_MAKING = threading.RLock()  # a finalizer may run in any line, this module's too
_GUARDS: "dict[int, Guard]" = {}
"""Process id → guard: one a process; a forked process makes one of its own."""


@dataclass(slots=True, kw_only=True)
class Guard:
    """Mark of this process's children, and the pipe to its watchdog."""

    name: str = field(default_factory=lambda: f"{MARK}{secrets.token_hex(8)}")
    owner: int = field(default_factory=os.getpid)
    """Process id of the process that it guards."""
    _told: dict[tuple[str, str], None] = field(default_factory=dict)
    """What the watchdog is to do, as (verb, value): paths to remove, commands to run."""
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def entry(self) -> str:
        """Return the entry that marks an environment, ``NAME=value``."""
        return f"{self.name}=1"

    def tell(self, verb: Literal["add", "drop", "run", "spare"], value: str) -> None:
        """Tell the watchdog to remove a path ("add") or to leave it ("drop"); see its ``watch``."""
        with _MAKING:
            if verb in {"add", "run"}:
                self._told[verb, value] = None
            else:
                self._told.pop(("add" if verb == "drop" else "run", value), None)
            if self._running():
                with contextlib.suppress(BrokenPipeError):
                    self._write(verb, value)
                    return
            self._start()

    def ensure(self) -> None:
        """Start the watchdog unless it runs."""
        with _MAKING:
            if not self._running():
                self._start()

    def close(self) -> None:
        """Remove what is left and let the watchdog go, at the end of the process."""
        if self._process is None or self._process.stdin is None or os.getpid() != self.owner:
            return  # a fork leaves what is its parent's
        for verb, value in tuple(self._told):
            if verb == "add":
                watchdog.remove(Path(value))
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it ends what is still there
            self._process.wait(timeout=watchdog.GRACE + 1)

    def _running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _start(self) -> None:
        """Start a watchdog and tell it everything; a killed one is replaced."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        kept = ("PATH", "LD_LIBRARY_PATH", "LANG")
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module, by its path
                [sys.executable, "-I", watchdog.__file__, str(os.getpid()), self.entry],
                env={name: os.environ[name] for name in kept if name in os.environ},
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C, a session's end are not for it
            )
        except OSError as error:
            logger.warning("no watchdog can be started (%s): kill -9 would leave children", error)
            return
        for verb, value in tuple(self._told):
            self._write(verb, value)

    def _write(self, verb: str, value: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            os.write(self._process.stdin.fileno(), json.dumps([verb, value]).encode() + b"\n")


def current_guard() -> Guard:
    """Return this process's guard; at first use, start its watchdog and remove stale scratch."""
    with _MAKING:
        guard = _GUARDS.get(os.getpid())
        if guard is not None:
            return guard
        guard = _GUARDS[os.getpid()] = Guard()
    guard.ensure()
    atexit.register(guard.close)
    for root in {Path(tempfile.gettempdir()), SHORT}:
        remove_stale(root)
    return guard


def child_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment (this process's by default) for a child that dies with this process."""
    guard = current_guard()
    guard.ensure()
    return {**(os.environ if environment is None else environment), guard.name: "1"}


@contextlib.contextmanager
def marked_children() -> Iterator[None]:
    """Mark every process that is started inside the block, by a library too."""
    guard = current_guard()
    guard.ensure()
    os.environ[guard.name] = "1"
    try:
        yield
    finally:
        os.environ.pop(guard.name, None)


@contextlib.contextmanager
def scratch_folder(what: str = "", *, short: bool = False) -> Iterator[Path]:
    """Yield a private folder that is removed at the end of the block or of this process.

    Args:
        what: Word in the folder's name.
        short: Whether sockets lie in it, whose paths must be short.

    Raises:
        OutputError: it cannot be made.
    """
    guard = current_guard()
    root = SHORT if short and os.access(SHORT, os.W_OK) else Path(tempfile.gettempdir())
    folder = root / f"{PREFIX}{what}{'-' * bool(what)}{secrets.token_hex(4)}"
    guard.tell("add", str(folder))
    try:
        folder.mkdir(mode=0o700)
        lock = _locked(folder, guard)
    except OSError as error:
        guard.tell("drop", str(folder))
        message = (
            f"TMPDIR {root}: no temporary folder can be made ({error.strerror}); "
            "name a writable one"
        )
        raise OutputError(message) from error
    try:
        yield folder
    finally:
        if os.getpid() == guard.owner:  # a fork leaves what is its parent's
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
            if not folder.exists():
                guard.tell("drop", str(folder))


def remove_at_end(path: Path) -> None:
    """Have a half-written file removed that this process leaves, or a socket without listener."""
    current_guard().tell("add", str(path.absolute()))


def keep_at_end(path: Path) -> None:
    """Take back :func:`remove_at_end`."""
    current_guard().tell("drop", str(path.absolute()))


@contextlib.contextmanager
def undone_if_killed(arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[None]:
    """Have a command run if this process is killed inside the block, to undo what it began."""
    command = json.dumps([list(arguments), dict(environment)])
    guard = current_guard()
    guard.tell("run", command)
    try:
        yield
    finally:
        guard.tell("spare", command)


def remove_stale(root: Path) -> None:
    """Remove scratch whose owner is gone, and end what bears its mark.

    Only folders of this user and machine whose lock is free are touched.
    """
    for file in root.glob(f"{PREFIX}*/{_OWNER}"):
        try:
            with file.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                owner = json.load(lock)
                mine = file.stat().st_uid == os.getuid() and owner["host"] == platform.node()
                if mine and str(owner["entry"]).startswith(MARK):
                    watchdog.end_marked(str(owner["entry"]))
                    watchdog.remove(file.parent)
        except (OSError, ValueError, TypeError, KeyError):
            continue  # its owner lives, or it is another user's, or is going now


def _locked(folder: Path, guard: Guard) -> int:
    """Write the owner's file, lock it, only then give it its name; return its handle."""
    owner = {"host": platform.node(), "process": os.getpid(), "entry": guard.entry}
    draft = folder / f"{_OWNER}.new"
    handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    with contextlib.suppress(OSError):  # a file system without locks: nobody takes it for stale
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(handle, json.dumps(owner).encode())
        draft.rename(folder / _OWNER)
    return handle
