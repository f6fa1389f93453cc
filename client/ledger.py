"""The egress ledger: every message that left the site, in a chain that shows any change.

``egress.jsonl`` holds one JSON object a line. Each names the SHA-256 of the line before it, and
its own: h_i = SHA-256(line i without h_i), where line i holds h_{i−1}. ``egress.head`` holds the
number of lines and the last hash, so that a cut at the end shows as well. The head also travels in
the stamp of every reply: whoever changes both files is contradicted by the coordinator's copy.

Reference:
    S. Haber and W. S. Stornetta, How to Time-Stamp a Digital Document, 1991.
"""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from fedwinnow.curation import wire
from fedwinnow.curation.errors import OutputError
from fedwinnow.curation.files import write_json
from fedwinnow.curation.messages import Refusal, Reply

logger = logging.getLogger(__name__)

_START = "0" * 64
"""The hash before the first line."""
_COUNTED = ("run", "phase", "round", "arm", "kind", "request", "data", "anchors")
"""Fields of a line that stay in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One message that leaves, in the words of the ledger."""

    run: str
    phase: str
    round: int
    arm: str
    kind: str
    """Class of the message, or ``Refusal:clause``."""
    arrays: Mapping[str, str]
    """Name → dtype and shape of each array."""
    size: int
    """Bytes of the message before it was sealed."""
    sha256: str
    """Of the same bytes."""
    request: str
    """SHA-256 of the request that it answers."""
    recipient: str
    """Fingerprint of the key that it is sealed to."""
    data: str = ""
    """Hash of the data set that it was computed from; "" where none was opened."""
    anchors: str = ""
    epsilon: float | None = None
    """Privacy spent; None where no noise bounds it."""

    @classmethod
    def of(cls, reply: Reply, plain: bytes, *, request: str, recipient: str, data: str = "",
           anchors: str = "") -> "Entry":  # fmt: skip
        """The entry of a reply whose encoding is ``plain``."""
        _, arrays = wire.to_arrays(reply)
        refused = f":{reply.clause}" if isinstance(reply, Refusal) else ""
        return cls(
            run=reply.header.run,
            phase=reply.header.phase,
            round=reply.header.round,
            arm=reply.header.arm,
            kind=type(reply).__name__ + refused,
            arrays={name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()},
            size=len(plain),
            sha256=hashlib.sha256(plain).hexdigest(),
            request=request,
            recipient=recipient,
            data=data,
            anchors=anchors,
        )


@dataclass(slots=True, kw_only=True)
class Ledger:
    """The open ledger of one site; one process holds it at a time."""

    folder: Path
    _lock: IO[bytes] = field(repr=False)
    _lines: int = 0
    _head: str = _START
    _entries: list[Mapping[str, Any]] = field(default_factory=list)
    """What the policy counts, of every line."""

    @classmethod
    def open(cls, folder: Path) -> "Ledger":
        """Open or begin the ledger in a folder, and hold it until the process ends.

        A last line that a crash left half-written never left the site: it is moved aside.

        Raises:
            OutputError: another process holds it, it does not verify, or it cannot be written.
        """
        lock = _hold(folder)
        try:
            _repair(folder)
            _check(folder)
            ledger = cls(folder=folder, _lock=lock)
            for _, entry in read(folder):
                ledger._remember(entry)
        except BaseException:
            lock.close()
            raise
        return ledger

    def append(self, entry: Entry) -> str:
        """Enter a message; it is on the disk when this returns. Returns the new head.

        Raises:
            OutputError: the disk is full; then nothing may leave.
        """
        tree: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")}
        tree |= {**asdict(entry), "arrays": dict(entry.arrays), "previous": self._head}
        tree["hash"] = _hash(tree)
        line = json.dumps(tree, ensure_ascii=False) + "\n"
        file = file_of(self.folder)
        size = file.stat().st_size if file.exists() else 0
        try:
            with file.open("ab") as out:
                os.fchmod(out.fileno(), 0o600)
                out.write(line.encode())
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            if file.exists():
                os.truncate(file, size)
            message = f"{file}: cannot be written ({error.strerror}); nothing leaves until it can"
            raise OutputError(message) from error
        self._remember(tree)
        write_json(_head_file(self.folder), {"lines": self._lines, "hash": self._head})
        return self._head

    @property
    def head(self) -> str:
        """Hash of the last line."""
        return self._head

    def released(self, kind: str, *, anchors: str | None = None) -> list[Mapping[str, Any]]:
        """Entries of a kind of message, against one anchor set or against any."""
        return [e for e in self._entries if e["kind"] == kind and anchors in {None, e["anchors"]}]

    def at(self, run: str, phase: str, number: int, arm: str) -> list[Mapping[str, Any]]:
        """Entries of a run's phase, round and arm; refusals are none."""
        place = (run, phase, number, arm)
        return [
            e
            for e in self._entries
            if (e["run"], e["phase"], e["round"], e["arm"]) == place
            and not e["kind"].startswith("Refusal")
        ]

    def _remember(self, tree: Mapping[str, Any]) -> None:
        self._entries.append({key: tree[key] for key in _COUNTED})
        self._lines, self._head = self._lines + 1, str(tree["hash"])

    def close(self) -> None:
        """Let another process hold the ledger."""
        self._lock.close()


def _check(folder: Path) -> None:
    if findings := verify(folder):
        message = (
            f"{file_of(folder)}: the ledger was changed ({findings[0]}); keep it as evidence, find "
            "out who did it, and start with a new work folder"
        )
        raise OutputError(message)


def _hold(folder: Path) -> IO[bytes]:
    """The lock of a ledger, held until it is closed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "egress.lock").open("wb")
    except OSError as error:
        message = f"{folder}: cannot be written ({error.strerror}); give the agent its folder"
        raise OutputError(message) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        message = f"{folder}: another agent holds this ledger; stop it, or use another work folder"
        raise OutputError(message) from error
    return lock


def file_of(folder: Path) -> Path:
    """The ledger in a work folder."""
    return folder / "egress.jsonl"


def read(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number, from 1, and content of every line.

    Raises:
        OutputError: a line is no JSON object.
    """
    file = file_of(folder)
    if not file.exists():
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                tree = json.loads(line)
            except ValueError as error:
                message = f"{file}, line {number}: expected a JSON object; the ledger was changed"
                raise OutputError(message) from error
            yield number, tree


def verify(folder: Path) -> list[str]:
    """What is wrong with a ledger, in plain words; empty where nothing is."""
    previous, count = _START, 0
    try:
        for number, tree in read(folder):
            count = number
            if not isinstance(tree, dict) or tree.get("hash") != _hash(tree):
                return [f"line {number} was changed: its content does not give its hash"]
            if tree.get("previous") != previous:
                return [
                    f"line {number} does not follow the line before it: one is missing or moved"
                ]
            previous = tree["hash"]
    except OutputError as error:
        return [str(error)]
    return _against_head(folder, count, previous)


def _against_head(folder: Path, count: int, last: str) -> list[str]:
    """Compare the end of the chain with the head file; the head may be one line behind a crash."""
    file = _head_file(folder)
    if not file.exists():
        return [] if count <= 1 else [f"{file.name} is missing, so a cut at the end would not show"]
    try:
        head = json.loads(file.read_text(encoding="utf-8"))
        lines, found = int(head["lines"]), str(head["hash"])
    except (ValueError, KeyError, TypeError):
        return [f"{file.name} was changed: it holds no count and hash"]
    if count < lines:
        return [f"{lines - count} lines are missing at the end"]
    if count == lines and found != last:
        return [f"the last line is not the one that {file.name} names"]
    if count > lines + 1:
        return [f"{count - lines} lines were added without {file.name}"]
    return []


def _repair(folder: Path) -> None:
    """Move a half-written last line aside, and write the head anew where a crash left it behind."""
    file = file_of(folder)
    if not file.exists():
        return
    data = file.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        aside = folder / "egress.torn"
        with aside.open("ab") as out:
            out.write(data[whole:] + b"\n")
        os.truncate(file, whole)
        logger.warning("%s: half a line that a crash left is now in %s", file, aside)
    if not verify(folder):
        lines = data[:whole].splitlines()
        if lines:
            head = {"lines": len(lines), "hash": json.loads(lines[-1])["hash"]}
            write_json(_head_file(folder), head)


def _head_file(folder: Path) -> Path:
    return folder / "egress.head"


def _hash(tree: Mapping[str, Any]) -> str:
    """SHA-256 of a line's canonical JSON without its own hash."""
    rest = {key: value for key, value in tree.items() if key != "hash"}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
