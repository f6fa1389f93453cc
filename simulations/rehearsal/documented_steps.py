"""Run the steps of the pages in ``docs/deploy`` as they are written there.

A block ``sh step=NAME`` is run to its end, a block ``sh serve=NAME`` stays running, and a block
``sh host`` (users, packages) is for a real machine only.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

import fedwinnow
from fedwinnow.curation.errors import TransportError
from fedwinnow.curation.process_guard import child_environment

DEPLOY = Path(fedwinnow.__file__).resolve().parents[1] / "docs" / "deploy"
"""Folder of the pages, scripts and settings; only in a checkout."""
LONGEST = 600.0
"""Time limit of a step, seconds."""
_BLOCK = re.compile(r"^```sh (step|serve)=([a-z-]+)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def read_steps(page: str) -> dict[str, tuple[str, str]]:
    """Read a page of ``docs/deploy``: name → ("step" or "serve", its lines)."""
    text = (DEPLOY / page).read_text(encoding="utf-8")
    return {name: (kind, lines) for kind, name, lines in _BLOCK.findall(text)}


def settings_of(file: str) -> dict[str, str]:
    """Read a settings file as it is shipped, without quotes."""
    text = (DEPLOY / file).read_text(encoding="utf-8")
    return {k: v.strip('"') for k, v in re.findall(r"^([A-Z_]+)=(.*)$", text, flags=re.MULTILINE)}


@dataclass(slots=True, kw_only=True)
class RehearsedMachine:
    """Machine of the coordinator or a silo: folder, page, environment, running processes."""

    folder: Path
    page: str
    environment: Mapping[str, str]
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    """Steps of the page that were run."""

    @property
    def private(self) -> Path:
        """Return the folder of keys and configuration."""
        return self.folder / "private"

    def step(self, name: str, **extra: str) -> str:
        """Run a step of the page to its end and return what it printed.

        Raises:
            TransportError: the step failed, or took too long.
        """
        try:
            done = subprocess.run(  # noqa: S603 - a line of our own page
                ["/bin/sh", "-eu", "-c", self._lines("step", name)],
                cwd=self.folder,
                env=child_environment({**self.environment, **extra}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LONGEST,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            message = f"{self.page}, step {name}: not done after {LONGEST:.0f} s: {error.output}"
            raise TransportError(message) from error
        if done.returncode != 0:
            message = f"{self.page}, step {name}: ended with code {done.returncode}:\n{done.stdout}"
            raise TransportError(message)
        return done.stdout

    def serve(self, name: str, **extra: str) -> None:
        """Start a ``serve`` block of the page; its output goes to ``log(name)``."""
        with self.log(name).open("ab") as log:
            self.running[name] = subprocess.Popen(  # noqa: S603 - a line of our own page
                ["/bin/sh", "-eu", "-c", "exec " + self._lines("serve", name)],
                cwd=self.folder,
                env=child_environment({**self.environment, **extra}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        """Return the file with the output of a served process."""
        return self.folder / f"{name}.log"

    def pids(self, name: str, program: str) -> list[int]:
        """Return the ids of a program's processes in the session of a served process."""
        group, found = self.running[name].pid, []
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) != group:
                    continue
                words = process.cmdline()
            except (psutil.Error, OSError):
                continue  # it has ended, or we may not read it
            if words[:1] != ["/bin/sh"] and _names(words, program):
                found.append(process.pid)
        return sorted(found)

    def stop(self, name: str, *, grace: float = 15.0) -> None:
        """Stop a served process: SIGTERM, then SIGKILL to all that is left of its session."""
        process = self.running.pop(name)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):  # the rest of the session is killed below
            process.wait(timeout=grace)
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _lines(self, kind: str, name: str) -> str:
        found, lines = read_steps(self.page)[name]
        if found != kind:
            message = f"{self.page}: {name} is a {found} block, not a {kind} block"
            raise TransportError(message)
        self.taken.add(name)
        return lines


def wait_until(ready: Callable[[], bool], what: str, *, log: Path, longest: float = 120.0) -> None:
    """Wait until ``ready`` returns True.

    Raises:
        TransportError: it does not within ``longest`` seconds.
    """
    end = time.monotonic() + longest
    while not ready():
        if time.monotonic() > end:
            said = log.read_text(encoding="utf-8", errors="replace")[-3000:]
            message = f"{what}: not ready after {longest:.0f} s; its log ends:\n{said}"
            raise TransportError(message)
        time.sleep(0.1)


def _names(words: Sequence[str], program: str) -> bool:
    """Return whether a command line runs the program, or is the program's own process title."""
    titled = " ".join(words).startswith(f"{program}: master")
    return titled or any(Path(word).name == program for word in words)
