"""A deployed run on real Flower that is struck from outside, and the cases of its matrix."""

import json
import os
import resource
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pytest
from fault_box import ALL, EXCHANGES

from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.config.coordinator import DeadlinesSection
from fedwinnow.curation.config.load_files import load_run
from fedwinnow.curation.config.strict_toml import to_toml
from fedwinnow.server.run.run_folder import RunFolder

LONGEST = 400.0
"""Longest wait for an exchange or for the end of a run, seconds; no wait is endless."""
FAULTS = {
    "coordinator": ("server", "link"),
    "agent": ("agent",),
    "connection": ("proxy", "node"),
    "disk full": ("agent's disk", "server's disk"),
}
"""What breaks, and who is struck for it."""
WHO = tuple(who for struck in FAULTS.values() for who in struck)
MOMENTS = {"boundary": 0.0, "inside": 1.0}
"""Seconds from an exchange's beginning to the strike: at the boundary of two, or inside one."""
CURATION = EXCHANGES[:6]
"""Exchanges before the first evaluation; the others train."""
PAIRS = (
    ("server", 0.0, (("measure", 1),)),
    ("link", 1.0, (("train", 1),)),
    ("agent", 0.0, (("train", 2),)),
    ("agent", 1.0, (("warm_up", 1),)),
    ("proxy", 0.0, (("probe", 0),)),
    ("node", 1.0, (("evaluate", 1),)),
    ("agent's disk", 0.0, (("evaluate", 0),)),
    ("server's disk", 1.0, (("score", 0),)),
)
"""Eight cases: each two of fault, moment, and curation or training meet in one of them."""
FULL = tuple((who, moment, EXCHANGES) for who, moment in product(WHO, MOMENTS.values()))
"""Everyone, at each boundary and inside each exchange: a run for each, struck in all of them."""
PROGRAMS = {
    "server": ("executor", "flwr-serverapp"),
    "server's disk": ("executor", "flwr-serverapp"),
    "link": ("superlink", "flower-superlink"),
    "proxy": ("proxy", "nginx"),
    "agent": ("agent", "serve"),
    "agent's disk": ("agent", "serve"),
    "node": ("node", "flower-supernode"),
}
"""What each is served as, and a word of its command line."""


class Run:
    """One run of the stage under a name of its own."""

    def __init__(self, stage, name: str, strikes: int = 0) -> None:
        home = stage.coordinator.private
        config = load_run(home / "run.toml")
        names = DeadlinesSection.__slots__
        self.config = replace(
            config,
            run=replace(config.run, name=name),
            quorum=ALL,
            deadlines=DeadlinesSection(**dict.fromkeys(names, 100.0)),
            coordinator=replace(config.coordinator, pause=3.0, resends=3, attempts=6 + 2 * strikes),
        )
        self.file, self.stage = home / f"{name}.toml", stage
        self.file.write_text(to_toml(self.config))
        self.folder = Path(self.config.run.output) / name
        self.log = home / f"{name}.log"

    def start(self) -> "subprocess.Popen[bytes]":
        """Type ``fedwinnow run``."""
        coordinator = self.stage.coordinator
        with self.log.open("ab") as log:
            return subprocess.Popen(
                ["fedwinnow", "run", str(self.file)],
                cwd=coordinator.folder,
                env=dict(coordinator.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def reach(self, phase: str, number: int, process) -> None:
        """Wait until an exchange has begun."""
        end = time.monotonic() + LONGEST
        while time.monotonic() < end and process.poll() is None:
            with suppress(OSError, ValueError):
                now = json.loads((self.folder / "state" / "status.json").read_text())
                if (now["phase"], now["round"]) == (phase, number):
                    return
            time.sleep(0.02)
        pytest.fail(f"{phase} {number} never began:\n{self.told()}")

    def adapter(self) -> str:
        """Hash of the adapter at the end."""
        state = RunFolder(folder=self.folder).load()
        assert state is not None
        assert state.phase == "done", self.told()
        assert not any(record.missing for record in state.records)
        return adapter_hash(state.finals["curated"])

    def retries(self) -> int:
        """Flower runs beyond the first."""
        status = json.loads((self.folder / "state" / "status.json").read_text())
        return int(status["attempts"]) - 1

    def told(self) -> str:
        """The ends of the logs."""
        logs = [self.log, *self.stage.coordinator.folder.glob("*.log")]
        logs += self.stage.silos["south"].folder.glob("*.log")
        return "\n".join(f"== {log}\n{log.read_text()[-3000:]}" for log in logs if log.exists())


def survive(run: Run, who: str, moment: float, at) -> list[float]:
    """Run it and strike in each exchange; seconds from each strike to the next, or to the end."""
    struck, process = [], run.start()
    try:
        for phase, number in at:
            run.reach(phase, number, process)
            time.sleep(moment)
            struck.append(time.monotonic())
            strike(run.stage, who, process)
        assert process.wait(LONGEST) == 0, run.told()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    struck.append(time.monotonic())
    return [round(after - before, 1) for before, after in pairwise(struck)]


def name_of(who: str, moment: float, at) -> str:
    """What a case is called, in a run's name and in pytest's."""
    when = "inside" if moment else "boundary"
    where = f"{at[0][0]}-{at[0][1]}" if len(at) == 1 else "everywhere"
    return f"{who}-{when}-{where}".replace("'s ", "-")


def found(stage, who: str) -> list[int]:
    """Processes of one kind: the coordinator's, or those of the site in the south."""
    name, word = PROGRAMS[who]
    ours = name in {"executor", "superlink", "proxy"}
    party = stage.coordinator if ours else stage.silos["south"]
    return party.pids(name, word)


def strike(stage, who: str, process) -> None:
    """Kill it with -9, or fill its disk for a while."""
    end = time.monotonic() + 30
    while not (pids := found(stage, who)):
        assert time.monotonic() < end, f"no {who} was found"
        assert process.poll() is None
        time.sleep(0.05)
    if "disk" not in who:
        for pid in pids:
            with suppress(ProcessLookupError):  # a process of it ended with the first
                os.kill(pid, signal.SIGKILL)
        return
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids}
    for pid, (_, hard) in limits.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (100, hard))
    time.sleep(8)
    for pid, limit in limits.items():
        with suppress(ProcessLookupError):  # it ended for want of room, as it should
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
