"""What fault cases did, kept as lines that a later call goes on from, and shown as a page."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fault_flower import FULL, PAIRS, name_of

ALONE = "one exchange"
HEAD = """# Faults

Written by `make faults-matrix`, which goes on with the cases that have no result in `faults.jsonl`
yet; delete that file to start over. How cases are made: [../faults.md](../faults.md).

Each run has three sites, a tiny model and twelve exchanges, from join to close, those with clusters
two more; one that is struck in twelve exchanges is struck twelve times. "Same adapter": the run
ended with the adapter of the run that nothing happened to, bit for bit, and no record names a
missing site. Seconds are those of a machine that may do other work. Retries: how often the
coordinator was started again; on Flower, how often `fedwinnow run` submitted the run again.
"""


class Evidence:
    """Leaves out what has a result, writes down what ends, and draws the page."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.commit = folder, _commit()

    def pytest_collection_modifyitems(self, config, items) -> None:
        """Go on with the cases that have not passed yet."""
        past = {line["case"] for line in self.lines() if line["outcome"] != "FAILED"}
        done = [item for item in items if item.nodeid in past]
        config.hook.pytest_deselected(items=done)
        items[:] = [item for item in items if item.nodeid not in past]

    def pytest_runtest_logreport(self, report) -> None:
        """Add a line; with workers, only the process that gathers their reports does."""
        story = dict(report.user_properties).get("story", {})
        gathers = "PYTEST_XDIST_WORKER" not in os.environ
        if not gathers or report.when != "call" or "at" not in story:
            return
        outcome = story.get("outcome") if report.passed else "FAILED"
        line = {
            "case": report.nodeid,
            **story,
            "outcome": outcome,
            "seconds": round(report.duration, 1),
            "commit": self.commit,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "faults.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.draw()

    def lines(self) -> list[dict[str, Any]]:
        """The last result of each case."""
        file = self.folder / "faults.jsonl"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        return list({x["case"]: x for x in map(json.loads, text.splitlines())}.values())

    def draw(self) -> None:
        """Write the page anew."""
        (self.folder / "faults.md").write_text(page(self.lines()), encoding="utf-8")


def page(lines: Iterable[Mapping[str, Any]]) -> str:
    """The page of all results."""
    lines = sorted(lines, key=lambda x: (x["where"], x["broken"], len(x["at"]) == 1))
    text, commits = [HEAD], sorted({x["commit"] for x in lines})
    machine = f"CPU, {os.cpu_count()} cores, Python {platform.python_version()}"
    text.append(f"Machine of the last part: {machine}. Commits: {', '.join(commits)}.\n")
    for where in ("in process", "sockets", "Flower"):
        ours = [x for x in lines if x["where"] == where]
        bad = sum(x["outcome"] == "FAILED" for x in ours)
        strikes = sum(len(x["at"]) for x in ours)
        text.append(
            f"## {where[0].upper()}{where[1:]}: {len(ours)} runs, {strikes} strikes, {bad} failed\n"
        )
        text += _table(ours)
        if where == "Flower":
            text.append(_left(ours))
    return "\n".join(text) + "\n"


def _table(lines: list[Mapping[str, Any]]) -> list[str]:
    rows = [
        "| what was broken | struck exchanges | outcome | seconds | retries |",
        "|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for line in lines:
        flower = line["where"] == "Flower"
        one = " ".join(map(str, line["at"][0])) if flower else ALONE
        struck = one if len(line["at"]) == 1 else f"{len(line['at'])} in one run"
        groups.setdefault((line["broken"], struck, str(line["outcome"])), []).append(line)
    for (broken, struck, outcome), group in groups.items():
        many = f"{struck}, {len(group)} runs" if struck == ALONE else struck
        seconds = _span([x["seconds"] for x in group])
        retries = _span([x["retries"] for x in group if "retries" in x]) or "unknown"
        rows.append(f"| {broken} | {many} | {outcome} | {seconds} | {retries} |")
    return [*rows, ""]


def _span(numbers: list[float]) -> str:
    if not numbers:
        return ""
    least, most = min(numbers), max(numbers)
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


def _left(lines: list[Mapping[str, Any]]) -> str:
    done = {line["case"].partition("[")[2].removesuffix("]") for line in lines}
    left = [name for name in (name_of(*case) for case in (*PAIRS, *FULL)) if name not in done]
    if not left:
        return "All cases of the matrix have run.\n"
    return f"**Not run yet ({len(left)}):** {', '.join(left)}.\n"


def _commit() -> str:
    """The checkout's commit, short, with a mark where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
