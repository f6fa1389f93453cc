"""Submit a run to Flower (``fedwinnow run``), and again whenever Flower ends it too early.

Flower cannot resume: a run dies with its SuperLink or ServerApp. Our run is a folder with a
committed state, so another Flower run goes on with it under our own run id. A run that can only
fail again (a wrong input) is not submitted again.
"""

import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedwinnow.curation import errors
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.errors import (
    InputError,
    OutputError,
    RunError,
    TransportError,
)
from fedwinnow.curation.process_guard import scratch_folder, undone_if_killed
from fedwinnow.curation.protocol.keys import PublicKey
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.tabular import counted
from fedwinnow.server.deployment.flower_programs import (
    PATIENCE,
    Connection,
    metrics_lines,
    thin_app,
)
from fedwinnow.server.run.preflight import check_config
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.run.status import read_status, status_file
from fedwinnow.server.transport.coordinator_envelopes import CoordinatorEnvelopes

logger = logging.getLogger(__name__)

POLL = 2.0
"""Shortest pause between two status queries of a Flower run, seconds; each costs 1 s of CPU."""
LONGEST = 15.0
"""Longest such pause: it grows to a twentieth of the time that the run has taken."""
QUIET = 25.0
"""Silence in the log of a Flower run after which a line is due, seconds."""
_POLICY = "refused (policy."


def supervise(file: Path, config: RunConfig, *, resume: bool = False) -> Path:
    """Run to the end, over as many Flower runs as it takes, and return the run folder.

    Args:
        file: The ``run.toml``; the ServerApp reads it again on this machine.
        config: What :func:`fedwinnow.curation.config.load_files.load_run` read from it.
        resume: Go on from the last committed state of the run folder.

    Raises:
        InputError: the configuration, a key or the run folder is at fault.
        RunError: sites refuse what a repetition would not change, or the run ended
            ``coordinator.attempts`` times without reaching its end.
    """
    check_config(config)
    store = RunFolder.open(config, resume=resume)
    CoordinatorEnvelopes.open(
        config, store.folder
    )  # a missing key or member is said before anything starts
    for member in config.members:
        mark = PublicKey.parse(member.key, "members.key").fingerprint
        logger.info("member %s: key with fingerprint %s", member.name, mark)
    section = config.coordinator
    with _alone(store.folder):
        if _ended(store):
            return store.folder
        for attempt in range(1, section.attempts + 1):
            again = resume or attempt > 1
            reason = _attempt(config, file, store, resume=again)
            if not reason:
                return store.folder
            if attempt < section.attempts:
                words = "attempt %d of %d: %s; the next in %.0f s"
                logger.warning(words, attempt, section.attempts, reason, section.pause)
                time.sleep(section.pause)
    message = (
        f"run {config.run.name} did not reach its end in {section.attempts} attempts; the last: "
        f"{reason}. What was committed is kept: mend it, and go on with --resume"
    )
    raise RunError(message)


def _attempt(config: RunConfig, file: Path, store: RunFolder, *, resume: bool) -> str:
    """Submit one Flower run and return why it did not reach the end, or "".

    Raises:
        InputError: the input is wrong; it stays wrong.
        RunError: sites refuse by their policy; they will again.
    """
    began, connection = time.time(), Connection(config.coordinator.connection)
    try:
        status, details = _once(connection, file, store, resume=resume)
    except TransportError as error:
        return str(error)
    if _ended(store):
        return ""
    _raise_if_input(details)
    now = _status_since(began, store)
    refusals = [f"{site} {why}" for site, why in now.get("missing", {}).items() if _POLICY in why]
    stopped = str(now.get("stopped", ""))
    needed = config.quorum.of(now["phase"], config.run.minimum_sites) if now else 0
    if stopped and len(config.members) - len(refusals) < needed:
        message = (
            f"{stopped}\n"
            + "\n".join(refusals)
            + "\nThese sites will say so again: agree with them, change the run, and start it anew"
        )
        raise RunError(message)
    return stopped or f"Flower ended the run as {status}: {details or 'no details'}"


def _ended(store: RunFolder) -> bool:
    """Return whether the run is done and its files are written, of which the page is the last."""
    state = store.load()
    files = (store.folder / name for name in ("record.json", "summary.json", "report.html"))
    return state is not None and state.phase == Phase.DONE and all(map(Path.exists, files))


def _status_since(began: float, store: RunFolder) -> Mapping[str, Any]:
    """Return the status that a Flower run wrote; empty where it did not come so far."""
    file = status_file(store.folder)
    if not file.exists() or file.stat().st_mtime < began:
        return {}
    return read_status(store.folder)


def lock_file(folder: Path) -> Path:
    """Return the file of a run folder that its supervisor holds locked."""
    return folder / "supervisor.lock"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock the run folder inside the block, as two supervisors would submit the run twice.

    Raises:
        OutputError: another one is at work.
    """
    file = lock_file(folder)
    with file.open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            message = (
                f"{folder}: another `fedwinnow run` supervises this run; watch it with `fedwinnow "
                f"status {folder}`, or end it first"
            )
            raise OutputError(message) from error
        yield


def _once(connection: Connection, file: Path, store: RunFolder, *, resume: bool) -> tuple[str, str]:
    """Submit one Flower run, watch it until it is finished, and return its status and details.

    Raises:
        TransportError: it could not be submitted, or the SuperLink is silent for too long.
    """
    told = len(metrics_lines(store.folder))
    run = _submit(connection, file, lock_file(store.folder), resume=resume)
    with undone_if_killed(connection.command("stop", run), os.environ):
        return _watched(connection, run, store, told)


def _watched(connection: Connection, run: str, store: RunFolder, told: int) -> tuple[str, str]:
    """Watch a Flower run until it is finished, and return its status and details.

    Raises:
        TransportError: the SuperLink is silent for too long.
    """
    began = heard = asked = said = time.monotonic()
    try:
        while True:
            time.sleep(POLL)
            for line in metrics_lines(store.folder)[told:]:
                told += 1
                logger.info("phase %(phase)s round %(round)d arm %(arm)s: %(seconds).1f s", line)
                said = time.monotonic()
            if time.monotonic() - said >= QUIET:
                logger.info("%s, %.0f s so far", _place(store), time.monotonic() - began)
                said = time.monotonic()
            pause = min(LONGEST, (time.monotonic() - began) / 20)
            if time.monotonic() - asked < pause and not (store.folder / "report.html").exists():
                continue  # the report is the last file of a run: then ask at once
            asked = time.monotonic()
            try:
                status, details = connection.status(run)
            except TransportError:
                if time.monotonic() - heard > PATIENCE:
                    raise
                continue  # the SuperLink may be starting again
            heard = time.monotonic()
            if status.startswith("finished"):
                return status, details
    except BaseException:  # also Ctrl-C: no Flower run goes on that nobody watches
        logger.warning("stopping Flower run %s; go on later with --resume", run)
        _stop(connection, run)
        raise


def _place(store: RunFolder) -> str:
    """Return in words the phase that a Flower run is in, and how many sites have answered."""
    if not status_file(store.folder).exists():
        return "Flower starts the run"
    now = read_status(store.folder)
    where = f"phase {now['phase']} round {now['round']} arm {now['arm']}"
    answered = f"{len(now['answered'])} of {counted(len(now['members']), 'member')} answered"
    left = now["ends"] - time.time()
    return f"{where}: {answered}, {max(left, 0):.0f} s to the deadline"


def _stop(connection: Connection, run: str) -> None:
    try:
        connection.flwr("stop", run)
    except TransportError as error:
        logger.warning("Flower run %s may still go on: %s", run, error)


def _submit(connection: Connection, file: Path, lock: Path, *, resume: bool) -> str:
    """Submit an app without code, whose components are each machine's package; return its id.

    The ServerApp ends itself where nobody holds ``lock`` any more: a kill between the submission
    and its answer would else leave a run whose id nobody knows.
    """
    with scratch_folder() as folder:
        given = folder / "run-config.toml"
        given.write_text(
            f"scenario = {json.dumps(str(file.resolve()))}\nresume = {json.dumps(resume)}\n"
            f"supervisor = {json.dumps(str(lock.resolve()))}\n",
            encoding="utf-8",
        )
        app = thin_app(folder)
        run = str(connection.flwr("run", str(app), "--run-config", str(given))["run-id"])
    logger.info("Flower run %s started", run)
    return run


def _raise_if_input(details: str) -> None:
    """Raise a wrong input under its own class and exit code, as it stays wrong.

    Raises:
        InputError: the details name such an error.
    """
    found = re.search(r"\b(\w+Error)\b", details)  # the first: a site's own may follow in the text
    kind = getattr(errors, found[1], None) if found else None
    if isinstance(kind, type) and issubclass(kind, InputError):
        raise kind(details)
