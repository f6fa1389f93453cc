"""What a run is doing now, for ``fedwinnow status``: a small file, written as replies arrive."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedwinnow.curation.errors import DataError
from fedwinnow.curation.files import write_json
from fedwinnow.curation.messages import Header


@dataclass(slots=True, kw_only=True)
class Status:
    """One exchange as it goes on; times are seconds since 1970."""

    file: Path
    header: Header
    members: tuple[str, ...]
    deadline: float
    """Seconds that the phase may take."""
    began: float = field(default_factory=time.time)
    answered: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def tell(self) -> None:
        """Write the file.

        Raises:
            OutputError: the run folder cannot be written.
        """
        header = self.header
        write_json(
            self.file,
            {
                "run": header.run,
                "phase": header.phase,
                "round": header.round,
                "arm": header.arm,
                "began": self.began,
                "ends": self.began + self.deadline,
                "members": list(self.members),
                "answered": self.answered,
                "missing": self.missing,
            },
        )

    def answer(self, site: str, *, down: int, up: int, missing: str) -> None:
        """Take what one site said or failed to say, and write the file."""
        seconds = round(time.time() - self.began, 3)
        if missing:
            self.missing[site] = missing
        else:
            self.answered[site] = {"seconds": seconds, "bytes_down": down, "bytes_up": up}
        self.tell()


def status_file(folder: Path) -> Path:
    """Where the status of a run folder lies."""
    return folder / "state" / "status.json"


def read_status(folder: Path) -> Mapping[str, Any]:
    """What the run in a folder is doing, with the bytes and absences of all phases so far.

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
