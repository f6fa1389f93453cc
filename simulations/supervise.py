"""``fedwinnow run``: submit to Flower, and again under our own run id whenever Flower ends the run.

Flower cannot resume: a run dies with its SuperLink or ServerApp. Ours is a folder with a committed
state, so another Flower run goes on with it. What can only fail again (a wrong input) is not tried
again.
"""

import json
import logging
import os
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedwinnow.curation import errors
from fedwinnow.curation.config import RunConfig
from fedwinnow.curation.errors import InputError, RunError, TransportError
from fedwinnow.curation.messages import Phase
from fedwinnow.server.sealing import Sealer
from fedwinnow.server.store import Store
from fedwinnow.simulations.flower import metrics_lines, thin_app
from fedwinnow.simulations.superlink import program

logger = logging.getLogger(__name__)

POLL = 2.0
"""Pause between two questions about a Flower run, seconds; each costs a second of CPU."""
PATIENCE = 120.0
"""Longest wait for a SuperLink that does not answer, seconds."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A SuperLink as Flower's ``config.toml`` knows it; "" is the default one."""

    name: str = ""

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """Run a command of Flower's command line on this connection, and return its JSON answer.

        Raises:
            TransportError: it failed, or the SuperLink does not answer.
        """
        command = [program("flwr"), *arguments, *filter(None, [self.name]), "--format", "json"]
        try:
            done = subprocess.run(  # noqa: S603 - our own command, no shell
                command,
                env=_environment(),
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE,
            )
            answer: dict[str, Any] = json.loads(done.stdout)
        except (ValueError, subprocess.TimeoutExpired) as error:
            message = (
                f"flwr {arguments[0]} gave no answer ({type(error).__name__}); start the "
                f"SuperLink, or name its connection in coordinator.connection (now {self.name!r})"
            )
            raise TransportError(message) from error
        if done.returncode != 0 or not answer.get("success"):
            said = str(answer.get("error-message") or done.stderr)[-500:]
            message = f"flwr {arguments[0]} failed with code {done.returncode}: {said}"
            raise TransportError(message)
        return answer

    def status(self, run: str) -> tuple[str, str]:
        """Status and details of a Flower run.

        Raises:
            TransportError: the SuperLink does not answer.
        """
        runs = self.flwr("list", "--run-id", run)["runs"]
        return str(runs[0]["status"]), str(runs[0].get("status-details", ""))


def supervise(file: Path, config: RunConfig, *, resume: bool = False) -> Path:
    """Run to the end, over as many Flower runs as it takes, and return the run folder.

    Args:
        file: The ``run.toml``; the ServerApp reads it again on this machine.
        config: What :func:`fedwinnow.curation.scenario.load_run` read from it.
        resume: Go on from the last committed state of the run folder.

    Raises:
        InputError: the configuration, a key or the run folder is at fault.
        TransportError: the SuperLink does not answer at all.
        RunError: the run ended ``coordinator.attempts`` times without reaching its end.
    """
    store = Store.open(config, resume=resume)
    Sealer.open(config, store.folder)  # a missing key or member is said before anything starts
    connection, section = Connection(config.coordinator.connection), config.coordinator
    reasons: list[str] = []
    for attempt in range(1, section.attempts + 1):
        if attempt > 1:
            logger.warning("attempt %d of %d: %s", attempt, section.attempts, reasons[-1])
            time.sleep(section.pause)
        try:
            status, details = _once(connection, file, store, resume=resume or attempt > 1)
        except TransportError as error:
            reasons.append(str(error))
            continue
        state = store.load()
        if state is not None and state.phase == Phase.DONE:
            return store.folder
        reasons.append(f"Flower ended the run as {status}: {details or 'no details'}")
        _raise_if_input(details)
    message = (
        f"run {config.run.name} did not reach its end in {section.attempts} attempts; the last: "
        f"{reasons[-1]}. What was committed is kept: mend it, and go on with --resume"
    )
    raise RunError(message)


def _once(connection: Connection, file: Path, store: Store, *, resume: bool) -> tuple[str, str]:
    """One Flower run, watched until it is finished: its status and details."""
    told = len(metrics_lines(store.folder))
    run = _submit(connection, file, resume=resume)
    heard = time.monotonic()
    try:
        while True:
            time.sleep(POLL)
            for line in metrics_lines(store.folder)[told:]:
                told += 1
                logger.info("phase %(phase)s round %(round)d arm %(arm)s: %(seconds).1f s", line)
            try:
                status, details = connection.status(run)
            except TransportError:
                if time.monotonic() - heard > PATIENCE:
                    raise
                continue  # the SuperLink may be starting again
            heard = time.monotonic()
            if status.startswith("finished"):
                return status, details
    except KeyboardInterrupt:
        logger.warning("stopping Flower run %s; go on later with --resume", run)
        connection.flwr("stop", run)
        raise


def _submit(connection: Connection, file: Path, *, resume: bool) -> str:
    """Submit an app without code: the components are those of the package at each machine."""
    with tempfile.TemporaryDirectory(prefix="fedwinnow-") as name:
        given = Path(name) / "run-config.toml"
        given.write_text(
            f"scenario = {json.dumps(str(file.resolve()))}\nresume = {json.dumps(resume)}\n",
            encoding="utf-8",
        )
        app = thin_app(Path(name))
        run = str(connection.flwr("run", str(app), "--run-config", str(given))["run-id"])
    logger.info("Flower run %s started", run)
    return run


def _raise_if_input(details: str) -> None:
    """An input that is wrong stays wrong: raise it under its own class and exit code.

    Raises:
        InputError: the details name one.
    """
    for name in re.findall(r"\b(\w+Error)\b", details):
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, InputError):
            raise kind(details)


def _environment() -> dict[str, str]:
    """Ours, with nothing that talks to anyone but the SuperLink."""
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    return dict(os.environ) | quiet
