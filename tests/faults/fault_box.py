"""A toy federation whose coordinator is a child process: it may die, and is started again."""

import logging
import multiprocessing
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from fault_breaks import Break, install

from fedwinnow.curation.config.coordinator import QuorumSection
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.errors import CurationError
from fedwinnow.curation.protocol import wire
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.state import RunState
from fedwinnow.simulations.runtimes.in_process import InProcess, run_phases

SETTINGS = ("scorer.name=tracin", "training.steps=1", "warm_up.steps=2")
"""What makes a toy run take a second; two steps, so that a warm-up draws a sample of each site."""
EXCHANGES = (
    ("join", 0),
    ("probe", 0),
    ("warm_up", 1),
    ("measure", 1),
    ("score", 0),
    ("select", 0),
    ("evaluate", 0),
    ("train", 1),
    ("evaluate", 1),
    ("train", 2),
    ("evaluate", 2),
    ("close", 0),
)
"""Phase and round of every exchange of a toy run."""
LONG = (("warm_up", 1), ("measure", 1), ("train", 1), ("train", 2))
"""Those whose work tells how far it is: a process can be killed in the middle of it.

Not the probe: what this run's scorer needs is measured after the warm-up only.
"""
ALL = QuorumSection(
    **dict.fromkeys(("join", "probe", "warm_up", "measure", "score", "select"), 3),
    **dict.fromkeys(("train", "evaluate", "close"), 3),
)
"""A run that goes on only with all three sites."""
KILLED = -9
LONGEST = 240.0
"""Longest life of a coordinator, seconds: for a machine that does much else."""
SPARE = 2
"""Lives beyond one for each break and one for the end."""


def children():
    """Processes forked off one that has imported everything once."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH", "")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "fedwinnow.simulations.runtimes.in_process",
            "fedwinnow.simulations.runtimes.sockets",
            "peft",
        ]
    )
    return context


def quiet(log: Path) -> None:
    """Let a child write to its own log; a full disk there is nobody's concern."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    logging.raiseExceptions = False
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)


def attempt(config: RunConfig, broken: Break | None, log: Path) -> None:
    """One life of a coordinator whose sites are in its own process."""
    quiet(log)
    if broken is not None:
        install(broken, InProcess)
    try:
        run_phases(config, resume=True)
    except CurationError as error:
        logging.getLogger(__name__).exception("the run ended")
        sys.exit(error.exit_code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One run in a folder of its own."""

    config: RunConfig
    folder: Path

    @classmethod
    def of(cls, config: RunConfig, folder: Path, *, quorum: QuorumSection = ALL) -> "Box":
        """The same run, elsewhere."""
        run = replace(config.run, output=str(folder))
        return cls(config=replace(config, run=run, quorum=quorum), folder=folder)

    @property
    def log(self) -> Path:
        """What the coordinators said."""
        return self.folder / "coordinator.log"

    def live(self, context, broken: Break | None = None, *, target=attempt, rest=()) -> list[int]:
        """Start coordinators until one comes to the end; their exit codes."""
        codes: list[int] = []
        most = lives(broken)
        while len(codes) < most and (not codes or codes[-1] != 0):
            child = context.Process(target=target, args=(self.config, broken, self.log, *rest))
            child.start()
            child.join(LONGEST)
            if child.exitcode is None:
                child.kill()
                child.join()
            codes.append(child.exitcode)
        if broken is not None:
            broken.story["retries"] = len(codes) - 1
        return codes

    def state(self) -> RunState:
        """The committed state."""
        state = RunFolder(folder=self.folder / self.config.run.name).load()
        assert state is not None
        return state


def lives(broken: Break | None) -> int:
    """How often a coordinator is started at most."""
    return 1 + SPARE + (len(broken.at) if broken else 0)


def result(state: RunState) -> bytes:
    """A state without what a clock, a waiting time or a ciphertext's size says."""
    records = tuple(
        replace(record, seconds=0.0, bytes_down=0, bytes_up=0) for record in state.records
    )
    return wire.dump(replace(state, records=records, config=""))
