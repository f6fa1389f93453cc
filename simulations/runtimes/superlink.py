"""Start a private SuperLink on a free loopback port with its own home, and stop it for certain.

It is offline by construction: no installation at run time, no telemetry, no update check, and Ray
takes 127.0.0.1 as its own address. Whatever happens, SIGKILL of this process too, every process
that was started here is stopped, and no other (:mod:`fedwinnow.curation.watchdog`).
"""

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fedwinnow
from fedwinnow.curation.errors import TransportError
from fedwinnow.curation.process_guard import child_environment, scratch_folder
from fedwinnow.curation.watchdog import end_marked
from fedwinnow.server.deployment.flower_programs import PATIENCE, program

logger = logging.getLogger(__name__)

START_UP = 120.0
"""Longest wait for the SuperLink to listen, seconds."""
_CONNECTION = """\
[superlink]
default = "simulation"

[superlink.simulation]
address = "127.0.0.1:{port}"
insecure = true
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperLink:
    """Running SuperLink and the environment of its commands."""

    home: Path
    process: subprocess.Popen[bytes]
    environment: Mapping[str, str]

    @property
    def log(self) -> Path:
        """Return the file of the SuperLink's output."""
        return self.home / "superlink.log"

    def tail(self, lines: int = 30) -> str:
        """Return the last lines that the SuperLink printed."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return _last(text, lines)

    def run_log(self, run: str, lines: int = 30) -> str:
        """Return the last lines of a run's own log, of server and sites."""
        return _last(self._call("log", run, "--show").stdout, lines)

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """Run a command of Flower's command line and return its JSON answer.

        Raises:
            TransportError: the command failed.
        """
        done = self._call(*arguments, "--format", "json")
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            answer = {}
        if done.returncode != 0 or not answer.get("success"):
            said = answer.get("error-message") or _last(done.stdout + done.stderr)
            message = (
                f"flwr {arguments[0]} failed with code {done.returncode}: {said}\n{self.tail()}"
            )
            raise TransportError(message)
        return answer

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(  # noqa: S603 - our own command, no shell
                [program("flwr"), *arguments],
                env=dict(self.environment),
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired as error:
            message = f"flwr {arguments[0]} gave no answer in {PATIENCE:.0f} s:\n{self.tail()}"
            raise TransportError(message) from error


@contextmanager
def private_superlink() -> Iterator[SuperLink]:
    """Run a private SuperLink inside the block; stop it with all that it started at the end."""
    with scratch_folder(short=True) as home:
        port = _free_port()
        (home / "config.toml").write_text(_CONNECTION.format(port=port), encoding="utf-8")
        environment = _environment(home)
        with (home / "superlink.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                [
                    program("flower-superlink"),
                    *("--insecure", "--simulation", "--isolation", "subprocess"),
                    *("--host", "127.0.0.1", "--port", str(port)),
                    "--disable-runtime-dependency-installation",
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        superlink = SuperLink(home=home, process=process, environment=environment)
        try:
            _listening(superlink, port)
            yield superlink
        finally:
            _stop(process, home)


def _environment(home: Path) -> dict[str, str]:
    """Return our environment without a foreign Ray cluster and without network access."""
    programs = str(Path(sys.executable).parent)
    packages = str(Path(fedwinnow.__file__).resolve().parents[1])
    inherited = {key: value for key, value in child_environment().items() if key != "RAY_ADDRESS"}
    return inherited | {
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH", "")])),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on every system: take 127.0.0.1 as own address
        "RAY_TMPDIR": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "TQDM_DISABLE": "1",  # its output is a log file
        "TMPDIR": str(home),  # leftovers of stopped processes are removed with the home
    }


def _listening(superlink: SuperLink, port: int) -> None:
    end = time.monotonic() + START_UP
    while time.monotonic() < end and superlink.process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    message = f"the SuperLink does not listen on 127.0.0.1:{port}:\n{superlink.tail()}"
    raise TransportError(message)


def _last(text: str, lines: int = 30) -> str:
    return "\n".join(text.splitlines()[-lines:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stop(process: subprocess.Popen[bytes], home: Path) -> None:
    """Stop the SuperLink and every other process with our private ``FLWR_HOME``."""
    left = end_marked(f"FLWR_HOME={home}")
    process.wait()
    if left:
        logger.warning("processes %s of the run in %s do not end", left, home)
