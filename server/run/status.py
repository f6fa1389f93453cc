"""Write and read what a run is doing, for ``fedwinnow status``: a file updated with each reply."""

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedwinnow.curation.atomic_files import write_json
from fedwinnow.curation.errors import DataError, OutputError
from fedwinnow.curation.protocol.header import Header

if TYPE_CHECKING:
    from fedwinnow.server.transport.interface import Delivery


@dataclass(slots=True, kw_only=True)
class Status:
    """Status of the exchange that goes on; times are seconds since 1970."""

    file: Path
    attempts: int = 1
    """Number of times that the run was started or resumed."""
    tree: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> "Status":
        """Return the status of a run folder, with one attempt more than its file holds."""
        file = status_file(folder)
        try:
            before = int(json.loads(file.read_text(encoding="utf-8"))["attempts"])
        except (OSError, ValueError, KeyError, TypeError):  # the first start, or another version's
            before = 0
        return cls(file=file, attempts=before + 1)

    def begin(self, header: Header, members: Sequence[str], deadline: float) -> None:
        """Note that an exchange begins, which may take ``deadline`` seconds.

        Raises:
            OutputError: the run folder cannot be written.
        """
        now = time.time()
        self.tree = {
            "run": header.run,
            "attempts": self.attempts,
            "phase": header.phase,
            "round": header.round,
            "arm": header.arm,
            "began": now,
            "ends": now + deadline,
            "members": list(members),
            "answered": {},
            "returning": {},
            "missing": {},
            "stopped": "",
        }
        write_json(self.file, self.tree, durable=False)

    def answer(self, delivery: "Delivery") -> None:
        """Note one site's reply, refusal or absence.

        Raises:
            OutputError: the run folder cannot be written.
        """
        from fedwinnow.curation.protocol.replies import Refusal  # noqa: PLC0415 - torch loads here
        from fedwinnow.server.phases.limits import clean_line, refusal_words  # noqa: PLC0415 - likewise

        site, seconds = delivery.site, round(time.time() - self.tree["began"], 3)
        cost = {"bytes_down": delivery.bytes_down, "bytes_up": delivery.bytes_up}
        if delivery.reply is None:
            self.tree["missing"][site] = clean_line(delivery.missing)
        elif isinstance(delivery.reply, Refusal):
            self.tree["missing"][site] = refusal_words(delivery.reply)
        elif delivery.request is not None:
            self.tree["returning"][site] = delivery.request.header.phase
        else:
            self.tree["answered"][site] = {"seconds": seconds, **cost}
        write_json(self.file, self.tree, durable=False)

    def stop(self, why: str) -> None:
        """Note why the run stopped early; a status that cannot be written stays as it was."""
        with contextlib.suppress(OutputError):  # what ends the run is told by its own error
            write_json(self.file, self.tree | {"stopped": why}, durable=False)


def status_file(folder: Path) -> Path:
    """Return the path of a run folder's status file."""
    return folder / "state" / "status.json"


def read_status(folder: Path) -> Mapping[str, Any]:
    """Return what the run in a folder is doing, with bytes and absences of all phases so far.

    Raises:
        DataError: the folder holds no run.
    """
    file = status_file(folder)
    try:
        tree: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = (
            f"{file}: expected the status of a run ({type(error).__name__}); give a run folder"
        )
        raise DataError(message) from error
    lines = folder / "metrics.jsonl"
    text = lines.read_text(encoding="utf-8") if lines.exists() else ""
    past = [json.loads(line) for line in text.splitlines()]
    tree["phases"] = [
        {key: one[key] for key in ("phase", "round", "arm", "seconds", "bytes_down", "bytes_up")}
        | {"missing": one["missing"]}
        for one in past
    ]
    for key in ("bytes_down", "bytes_up"):
        tree[key] = sum(one[key] for one in past)
    tree["done"] = bool(past) and past[-1]["phase"] == "close"
    return tree
