"""Laws of a deployed run on real Flower whose processes are killed and whose disks are full.

SuperLink, proxy, three SuperNodes with their executors, three agents: started by the scripts of
``docs/deploy``, struck from outside, healed by ``supervise`` and by ``fedwinnow run``.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from fault_box import ALL, EXCHANGES, SETTINGS

from fedwinnow.curation.adapters import adapter_hash
from fedwinnow.curation.config import DeadlinesSection
from fedwinnow.curation.scenario import load_run, load_scenario
from fedwinnow.curation.settings import to_toml
from fedwinnow.server.store import Store
from fedwinnow.simulations.rehearsal import furnish, rehearsal
from fedwinnow.simulations.toy import SITES, write_toy_scenario

pytestmark = [
    pytest.mark.faults,
    pytest.mark.flower,
    pytest.mark.skipif(
        not Path("/proc").is_dir() or shutil.which("nginx") is None,
        reason="needs /proc and nginx (apt-get install nginx)",
    ),
]
LONGEST = 400.0
"""Longest case, seconds; no wait is endless."""
WHO = ("server", "link", "proxy", "agent", "node", "agent's disk", "server's disk")
PAIRS = (
    ("server", 1.0, "measure", 1),
    ("server's disk", 0.0, "score", 0),
    ("link", 1.0, "train", 1),
    ("proxy", 0.0, "probe", 0),
    ("agent", 1.0, "warm_up", 1),
    ("agent", 0.0, "select", 0),
    ("node", 1.0, "train", 2),
    ("agent's disk", 0.0, "evaluate", 1),
)
"""Who is struck, how many seconds after which exchange began: each pair of kinds once."""
FULL = [
    pytest.param(who, moment, *exchange, marks=pytest.mark.slow)
    for who, moment, exchange in product(WHO, (0.0, 1.0), EXCHANGES)
    if (who, moment, *exchange) not in PAIRS
]
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


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Everything that the pages start, with agents whose policies allow many runs."""
    scenario = load_scenario(
        write_toy_scenario(tmp_path_factory.mktemp("toy"), samples=8), SETTINGS
    )
    with rehearsal(SITES) as stage:
        stage.open()
        furnish(stage, scenario)
        for site in SITES:
            file = stage.silos[site].private / "site.toml"
            text = file.read_text().replace("\nsummaries = 1\n", "\nsummaries = 1000\n")
            file.write_text(text.replace("\nmax_rounds = 20\n", "\nmax_rounds = 100000\n"))
            stage.admit(site)
            stage.join(site)
        yield stage


class Run:
    """One run of the stage under a name of its own."""

    def __init__(self, stage, name: str) -> None:
        home = stage.coordinator.private
        config = load_run(home / "run.toml")
        names = DeadlinesSection.__slots__
        self.config = replace(
            config,
            run=replace(config.run, name=name),
            quorum=ALL,
            deadlines=DeadlinesSection(**dict.fromkeys(names, 100.0)),
            coordinator=replace(config.coordinator, pause=3.0, resends=3, attempts=6),
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
        state = Store(folder=self.folder).load()
        assert state is not None
        assert state.phase == "done", self.told()
        assert not any(record.missing for record in state.records)
        return adapter_hash(state.finals["curated"])

    def told(self) -> str:
        """The ends of the logs."""
        logs = [self.log, *self.stage.coordinator.folder.glob("*.log")]
        logs += self.stage.silos["south"].folder.glob("*.log")
        return "\n".join(f"== {log}\n{log.read_text()[-3000:]}" for log in logs if log.exists())


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


@pytest.fixture(scope="module")
def unstruck(stage):
    """The adapter of a run that nothing happened to."""
    run = Run(stage, "whole")
    process = run.start()
    assert process.wait(LONGEST) == 0, run.told()
    return run.adapter()


def test_faults_flower_ends_with_the_adapter_of_one_process(unstruck, unbroken):
    """Flower, its proxy and its processes change nothing: the same adapter, bit for bit."""
    assert unstruck == adapter_hash(unbroken.state().finals["curated"])


@pytest.mark.parametrize(("who", "moment", "phase", "number"), [*PAIRS, *FULL])
def test_faults_flower_run_survives(stage, unstruck, who, moment, phase, number):
    """One command, one strike: exit code 0, the same adapter, nobody missing."""
    run = Run(stage, f"{who}-{phase}-{number}-{moment:.0f}".replace("'s ", "-"))
    process = run.start()
    try:
        run.reach(phase, number, process)
        time.sleep(moment)
        strike(stage, who, process)
        assert process.wait(LONGEST) == 0, run.told()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert run.adapter() == unstruck
