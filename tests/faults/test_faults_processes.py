"""Laws of killed processes: SIGTERM, SIGHUP and SIGKILL at random moments leave nothing behind."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from repository import ROOT
from toy_deployment_files import write_toy_deployment

from fedwinnow.curation import watchdog
from fedwinnow.curation.process_guard import SHORT
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario
from fedwinnow.simulations.runtimes.superlink import private_superlink

pytestmark = pytest.mark.faults
WHERE = "processes"
KILLS = 10
"""Random moments of each kind of process."""
LONGEST = 10.0
"""Time until nothing may be left, seconds."""
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
WORKERS = """
import sys, time
from fedwinnow.client.signals.workers import WorkerModel, Workers
from fedwinnow.curation.config.scoring import AdapterSection, ModelSection
from fedwinnow.curation.config.site import ComputeSection

if __name__ == "__main__":
    section = ModelSection(name=sys.argv[1], max_length=96)
    adapter = AdapterSection(rank=4, alpha=8.0, targets=("q_proj",))
    model = WorkerModel(section=section, adapter=adapter, seed=0, threads=1)
    print(Workers(section=ComputeSection(workers=1), model=model).processes(), flush=True)
    time.sleep(300)
"""
"""A silo's Ray worker, without an agent around it."""


@dataclass
class Watched:
    """A command line of ours, everything that it started, and where it may leave files."""

    process: subprocess.Popen
    entry: str
    folder: Path
    log: Path
    seen: dict[int, psutil.Process] = field(default_factory=dict)
    scratch: set[Path] = field(default_factory=set)

    @classmethod
    def start(cls, command, folder: Path, environment=None) -> "Watched":
        """Start it with a mark that all its descendants inherit, and a TMPDIR of its own."""
        entry = f"FEDWINNOW_TEST_MARK={uuid.uuid4().hex}"
        (folder / "tmp").mkdir(parents=True)
        name, _, value = entry.partition("=")
        given = {**(environment or os.environ), name: value, "TMPDIR": str(folder / "tmp")}
        given |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                list(map(str, command)),
                cwd=folder,
                env=given,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return cls(process=process, entry=entry, folder=folder, log=folder / "log")

    def look(self) -> list[psutil.Process]:
        """Note and return the processes that live, and note their scratch."""
        living = watchdog.marked(self.entry)
        self.seen |= {one.pid: one for one in living}
        for file in SHORT.glob("fw-*/.owner"):
            try:
                if json.loads(file.read_text())["process"] in self.seen:
                    self.scratch.add(file.parent)
            except (OSError, ValueError):
                continue
        return living

    def dogs(self) -> list[psutil.Process]:
        """The watchdogs of all processes that were seen."""
        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            ours = watchdog.__file__ in words and int(words[-2]) in self.seen
            found += [process] if ours else []
        return found

    def left(self) -> list[str]:
        """What is still there: processes, scratch, sockets, half-written files."""
        living = [f"{one.pid} {' '.join(one.cmdline())[:80]}" for one in self.look()]
        living += [f"watchdog {one.pid}" for one in self.dogs()]
        files = [path for path in self.scratch if path.exists()]
        files += list((self.folder / "tmp").iterdir())
        for path in self.folder.rglob("*"):
            if path.is_socket() or re.fullmatch(r"\..*\.\d+", path.name):
                files.append(path)
        return [*living, *map(str, files)]

    def wait_until_clear(self) -> list[str]:
        """What is left after ``LONGEST`` seconds, or nothing as soon as nothing is."""
        end = time.monotonic() + LONGEST
        while (left := self._left_safely()) and time.monotonic() < end:
            time.sleep(0.1)
        return left

    def _left_safely(self) -> list[str]:
        self.process.poll()  # no zombie of ours counts
        try:
            return self.left()
        except (psutil.Error, FileNotFoundError):
            return ["it is going"]


def strike(run: Watched, dice: random.Random, *, longest: float, others: bool) -> str:
    """Kill one process of a run at a random moment; return what was done, in words.

    A run goes on without a worker or a ClientApp; it is then ended itself, and by SIGTERM.
    """
    moment, number = dice.uniform(0.3, longest), dice.choice(SIGNALS)
    end = time.monotonic() + moment
    while time.monotonic() < end and run.process.poll() is None:
        run.look()
        time.sleep(0.05)
    living = [one for one in run.look() if one.pid != run.process.pid]
    front = not others or not living or dice.random() < 0.5
    victim = run.process if front else dice.choice(living)
    words = "the front"
    try:
        if front:
            run.process.send_signal(number)
            return f"{number.name} to the front after {moment:.1f} s"
        words = " ".join(victim.cmdline()[:4])[-60:]
        victim.send_signal(number)
    except psutil.Error:
        words = "one that had ended"
    end = time.monotonic() + LONGEST
    while time.monotonic() < end and run.process.poll() is None:
        run.look()
        time.sleep(0.1)
    run.process.terminate()
    return f"{number.name} to {words} after {moment:.1f} s"


def dice_of(words: str) -> random.Random:
    """Dice that fall the same way each time."""
    return random.Random(words)  # noqa: S311 - the moments of a test, no secret


def nothing_is_left(run: Watched, dice, story, *, longest: float, others: bool = False) -> None:
    """Strike the run once, and look for what is left after ten seconds."""
    try:
        told = strike(run, dice, longest=longest, others=others)
        left = run.wait_until_clear()
        code = run.process.wait(timeout=LONGEST)
        story.update(
            where=WHERE, broken=told, outcome="left: " + "; ".join(left) if left else "clear"
        )
        assert left == [], (told, code, run.log.read_text()[-1500:])
        if told.startswith(("SIGTERM to the front", "SIGHUP to the front")):
            said = run.log.read_text()[-1500:]
            assert code in {0, 143, 129, -signal.SIGTERM, -signal.SIGHUP}, (told, code, said)
    finally:
        watchdog.end_marked(run.entry, grace=0.0)
        run.process.wait()


CLI = (sys.executable, "-m", "fedwinnow.cli.main")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A toy federation that takes some seconds."""
    return write_toy_scenario(tmp_path_factory.mktemp("toy"), samples=24)


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_killed_simulation_leaves_nothing(toy, tmp_path, story, seed):
    """Law: of a simulation in one process."""
    command = (*CLI, "simulate", toy, "--set", f"run.output={tmp_path / 'runs'}")
    run = Watched.start(command, tmp_path / "here")
    nothing_is_left(run, dice_of(f"in process {seed}"), story, longest=10)


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_killed_flower_simulation_leaves_nothing(toy, tmp_path, story, seed):
    """Law: of front, SuperLink, ServerApp, ClientApps and Ray, whichever is struck."""
    command = (*CLI, "simulate", toy, "--runtime", "flower", "--set", f"run.output={tmp_path}/r")
    run = Watched.start(command, tmp_path / "here")
    nothing_is_left(run, dice_of(f"flower {seed}"), story, longest=35, others=True)


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_killed_agent_leaves_nothing(tmp_path_factory, story, seed):
    """Law: of ``site serve``; its socket goes too, or a new agent takes it over."""
    folder = tmp_path_factory.mktemp("a")
    write_toy_deployment(folder)
    run = Watched.start((*CLI, "site", "serve", folder / "north" / "site.toml"), folder / "here")
    run.folder = folder
    (folder / "tmp").mkdir()
    nothing_is_left(run, dice_of(f"agent {seed}"), story, longest=10)
    assert list((folder / "here" / "tmp").iterdir()) == []


@pytest.mark.parametrize("seed", range(KILLS))
def test_killed_workers_leave_nothing(tiny_model_folder, tmp_path, story, seed):
    """Law: of a silo's own Ray and its workers."""
    program = tmp_path / "workers.py"
    program.write_text(WORKERS, encoding="utf-8")
    command = (sys.executable, program, tiny_model_folder)
    run = Watched.start(command, tmp_path / "here")
    dice = dice_of(f"workers {seed}")
    nothing_is_left(run, dice, story, longest=20, others=True)


@pytest.fixture(scope="module")
def superlink():
    """A SuperLink of somebody's, which outlives the coordinator's command."""
    with private_superlink() as link:
        yield link


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_killed_coordinator_leaves_nothing(superlink, tmp_path_factory, story, seed):
    """Law: of ``fedwinnow run``; its Flower run is stopped too, and the SuperLink goes on."""
    folder = tmp_path_factory.mktemp("c")
    file = write_toy_deployment(folder)
    run = Watched.start((*CLI, "run", file), folder / "here", superlink.environment)
    nothing_is_left(run, dice_of(f"coordinator {seed}"), story, longest=20)
    assert superlink.process.poll() is None
    going = [one for one in superlink.flwr("list")["runs"] if "finished" not in one["status"]]
    assert going == []
