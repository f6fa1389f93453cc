"""Keep the egress ledger: a hash chain of every charge, and of every message that left the site.

``egress.jsonl`` holds one JSON object a line, chained and checked by
:mod:`fedwinnow.client.budget.ledger_chain`; ``egress.head`` holds the number of lines and the
last hash. The head also travels in the stamp of every reply: whoever changes both files is
contradicted by the coordinator's copy. A stamp is no secret, so each line holds a random salt: a
guess at a message cannot be tried against the head.

A *charge* is a line of kind ``Charge:KIND`` that is written before anything private is computed
for a reply of that kind. It is never taken back, whatever comes of the request.
"""

import fcntl
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from fedwinnow.client.budget.ledger_chain import (
    START,
    file_of,
    hash_of,
    head_of,
    line_of,
    read_chain,
    verify_chain,
)
from fedwinnow.curation.atomic_files import write_json
from fedwinnow.curation.errors import OutputError
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.protocol.replies import Refusal

logger = logging.getLogger(__name__)

CHARGE = "Charge:"
"""Begins the kind of a line that charges a release before it is computed."""
Place = tuple[str, str, int, str]
"""Run, phase, round and arm of a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Ledger entry of one message that leaves, or of a charge before it is computed."""

    run: str
    phase: str
    round: int
    arm: str
    kind: str
    """Class of the message, ``Refusal:clause``, or ``Charge:`` with what is charged."""
    arrays: Mapping[str, str]
    """Name → dtype and shape of each array."""
    size: int
    """Bytes of the message before it was encrypted."""
    sha256: str
    """SHA-256 of the same bytes."""
    request: str
    """SHA-256 of the request that it answers."""
    recipient: str
    """Fingerprint of the key that it is encrypted to."""
    data: str = ""
    """Hash of the data set that it was computed from; "" where none was opened."""
    anchors: str = ""
    epsilon: float | None = None
    """Privacy spent; None where no noise bounds it."""
    passed_on: str = ""
    """Who else gets it by the agreed terms; "" (and then not in the line) for nobody."""

    @classmethod
    def of(cls, reply: Reply, plain: bytes, *, request: str, recipient: str, data: str = "",
           anchors: str = "", passed_on: str = "") -> "Entry":  # fmt: skip
        """Build the entry of a reply whose encoding is ``plain``."""
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
            passed_on=passed_on,
        )

    @classmethod
    def charge(cls, header: Header, kind: str, *, request: str, recipient: str, data: str,
               anchors: str) -> "Entry":  # fmt: skip
        """Build the entry that charges a data set with a release of a kind of message."""
        return cls(
            run=header.run,
            phase=header.phase,
            round=header.round,
            arm=header.arm,
            kind=CHARGE + kind,
            arrays={},
            size=0,
            sha256="",
            request=request,
            recipient=recipient,
            data=data,
            anchors=anchors,
        )


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Open ledger of one site; one process holds it at a time."""

    folder: Path
    _lock: IO[bytes] = field(repr=False)
    _lines: int = 0
    _head: str = START
    _released: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    """Kind of message → data set → request → run, charged or released."""
    _places: dict[Place, set[str]] = field(default_factory=dict)
    """Place → its requests, charged or answered."""

    @classmethod
    def open(cls, folder: Path) -> "Ledger":
        """Open or create the ledger in a folder, and hold it until the process ends.

        A last line that a crash left half-written is moved aside: its message never left the site.

        Raises:
            OutputError: another process holds it, it does not verify, or it cannot be written.
        """
        lock = _hold(folder)
        try:
            _begin(folder)
            _repair(folder)
            _check(folder)
            ledger = cls(folder=folder, _lock=lock)
            for _, entry in read_chain(folder):
                ledger._remember(entry)
        except BaseException:
            lock.close()
            raise
        return ledger

    def append(self, entry: Entry) -> str:
        """Append an entry and sync it to disk; return the new head.

        Raises:
            OutputError: the disk is full; then nothing may leave.
        """
        tree: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")}
        tree |= {**asdict(entry), "arrays": dict(entry.arrays)}
        if not entry.passed_on:
            del tree["passed_on"]
        tree |= {"salt": secrets.token_hex(16), "previous": self._head}
        tree["hash"] = hash_of(tree)
        file = file_of(self.folder)
        size = file.stat().st_size
        try:
            with file.open("ab") as out:
                out.write(line_of(tree))
                out.flush()
                os.fsync(out.fileno())
            _write_head(self.folder, self._lines + 1, tree["hash"])
        except (OSError, OutputError) as error:
            os.truncate(file, size)
            message = f"{file}: cannot be written ({error}); nothing leaves until it can"
            raise OutputError(message) from error
        self._remember(tree)
        return self._head

    @property
    def head(self) -> str:
        """Return the hash of the last line."""
        return self._head

    def released(self, kind: str) -> Mapping[str, Mapping[str, str]]:
        """Return the charges and releases of a kind of message: data set → request → run."""
        return self._released.get(kind, {})

    def at(self, place: Place) -> frozenset[str]:
        """Return the requests that were charged or answered at a place; a refusal alone is none."""
        return frozenset(self._places.get(place, ()))

    def _remember(self, tree: Mapping[str, Any]) -> None:
        kind, request, run = str(tree["kind"]).removeprefix(CHARGE), tree["request"], tree["run"]
        if not kind.startswith("Refusal"):
            place = run, tree["phase"], tree["round"], tree["arm"]
            self._places.setdefault(place, set()).add(request)
            if tree["data"]:
                of_kind = self._released.setdefault(kind, {})
                of_kind.setdefault(tree["data"], {})[request] = run
        self._lines, self._head = self._lines + 1, str(tree["hash"])

    def close(self) -> None:
        """Release the ledger, so that another process can hold it."""
        self._lock.close()


def _check(folder: Path) -> None:
    if findings := verify_chain(folder):
        message = (
            f"{file_of(folder)}: the ledger was changed ({findings[0]}); keep it as evidence, find "
            "out who did it, and start with a new work folder"
        )
        raise OutputError(message)


def _hold(folder: Path) -> IO[bytes]:
    """Lock a ledger until the returned file is closed."""
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


def _begin(folder: Path) -> None:
    """Create an empty ledger with its head, synced to disk, where there is neither."""
    file = file_of(folder)
    if head_of(folder).exists() or (file.exists() and file.stat().st_size > 0):
        return
    try:
        file.touch(mode=0o600)
        _write_head(folder, 0, START)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        message = f"{folder}: cannot be written ({error.strerror}); give the agent its folder"
        raise OutputError(message) from error


def _write_head(folder: Path, lines: int, last: str) -> None:
    write_json(head_of(folder), {"lines": lines, "hash": last})


def _repair(folder: Path) -> None:
    """Move a half-written last line aside, and rewrite the head where a crash left it behind."""
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
    if not verify_chain(folder) and whole:
        lines = data[:whole].splitlines()
        _write_head(folder, len(lines), json.loads(lines[-1])["hash"])
