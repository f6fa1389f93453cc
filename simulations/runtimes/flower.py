"""Run a scenario on Flower's simulation runtime: the same federation, carried by Flower and Ray.

The run is submitted to a private SuperLink (:mod:`fedwinnow.simulations.runtimes.superlink`) and
watched through Flower's command line, because ``flwr run --stream`` returns 0 even when a run
fails.
"""

import json
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fedwinnow.curation import errors
from fedwinnow.curation.config.identity import run_id, sites_folder
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import to_toml
from fedwinnow.curation.errors import InputError, RunError, TransportError
from fedwinnow.server.deployment.flower_programs import metrics_lines, thin_app
from fedwinnow.server.report.final_files import finish
from fedwinnow.server.run.preflight import check_config
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.run.status import read_status, status_file
from fedwinnow.simulations.datasets.planted_truth import selection_figures
from fedwinnow.simulations.runtimes.superlink import SuperLink, private_superlink

logger = logging.getLogger(__name__)

LONGEST = 7 * 24 * 3600.0
"""Default time limit of a run, seconds."""
SILENCE = 25.0
"""Longest pause between two lines about a run, seconds."""


def simulate_with_flower(
    config: RunConfig,
    *,
    resume: bool = False,
    command: str = "",
    app: Path | None = None,
    at_once: int | None = None,
    deadline: float = LONGEST,
) -> Path:
    """Run a scenario on Flower's simulation runtime and return its run folder.

    Args:
        config: The scenario, with at least one site.
        resume: Whether to go on from the last committed state of the run folder.
        command: The command line that reproduces the run, for the report.
        app: Folder of the Flower app to submit; None makes one with fedwinnow's components.
        at_once: Number of sites that work at a time, each in a process with its own model; None
            takes as many as the processors allow.
        deadline: Time limit of the run, seconds.

    Raises:
        InputError: the scenario, its data, its model or the run folder is at fault.
        TransportError: the SuperLink or the run did not start, or the deadline passed.
        RunError: the run did not end as completed.
    """
    check_config(config)
    store = RunFolder.open(config, resume=resume)
    with private_superlink() as superlink:
        scenario = superlink.home / "scenario.toml"
        scenario.write_text(to_toml(config), encoding="utf-8")
        given = superlink.home / "run-config.toml"
        given.write_text(f"scenario = {json.dumps(str(scenario))}\nresume = {json.dumps(resume)}\n")
        submitted = superlink.flwr(
            "run",
            str(app or thin_app(superlink.home)),
            "--run-config",
            str(given),
            "--federation-config",
            _resources(config, at_once or len(config.sites)),
        )
        run = str(submitted["run-id"])
        logger.info("Flower run %s of %d sites started", run, len(config.sites))
        _wait(superlink, run, store, deadline)
    state = store.load()
    if state is None:
        message = f"{store.folder}: the run is completed but left no state; run it again"
        raise RunError(message)
    figures = selection_figures(config, sites_folder(config), run_id(config))
    finish(state, store, command=command, selection=figures)
    return store.folder


def _resources(config: RunConfig, at_once: int) -> str:
    """Return Flower's federation config: one node a site, at most ``at_once`` of them at work."""
    available = os.cpu_count() or 1
    each = min(config.run.threads, available)
    total = min(available, each * at_once)
    settings = {
        "num-supernodes": len(config.sites),
        "client-resources-num-cpus": each,
        "client-resources-num-gpus": 1.0 if torch.cuda.is_available() else 0.0,
        "init-args-num-cpus": total,
    }
    return " ".join(f"{key}={value}" for key, value in settings.items())


def _wait(superlink: SuperLink, run: str, store: RunFolder, deadline: float) -> None:
    """Wait until the run is finished; poll seldom, as each query costs seconds of CPU."""
    began = asked = said = time.monotonic()
    end, cost = began + deadline, 1.0
    told = 0
    while time.monotonic() < end:
        if superlink.process.poll() is not None:
            message = f"the SuperLink of run {run} ended before the run:\n{superlink.tail()}"
            raise TransportError(message)
        lines = metrics_lines(store.folder)
        for line in lines[told:]:
            logger.info("phase %(phase)s round %(round)d arm %(arm)s: %(seconds).1f s", line)
            said = time.monotonic()
        told, closed = len(lines), bool(lines) and lines[-1]["phase"] == "close"
        if time.monotonic() - asked > (1.0 if closed else 5 * cost):
            asked = time.monotonic()
            answer = superlink.flwr("list", "--run-id", run)["runs"][0]
            cost = time.monotonic() - asked
            if str(answer["status"]).startswith("finished"):
                return _judge(answer, run, superlink)
        if time.monotonic() - said > SILENCE:
            said = time.monotonic()
            logger.info("Flower run %s, %.0f s so far: %s", run, said - began, _doing(store.folder))
        time.sleep(0.2)
    message = (
        f"run {run} is not finished after {deadline:.0f} s; its log ends:\n{superlink.run_log(run)}"
    )
    raise TransportError(message)


def _doing(folder: Path) -> str:
    """Return the phase that goes on and how many sites answered in it, in words."""
    if not status_file(folder).exists():
        return "sites start"
    found = read_status(folder)
    where = " ".join(str(part) for part in (found["phase"], found["round"], found["arm"]) if part)
    answered, members = len(found["answered"]), len(found["members"])
    return f"phase {where}, {answered} of {members} sites answered"


def _judge(answer: Mapping[str, Any], run: str, superlink: SuperLink) -> None:
    """Raise unless the run is completed; faulty input keeps its own error and exit code."""
    if answer["status"] == "finished:completed":
        return
    details = str(answer.get("status-details", ""))
    message = f"Flower's run {run} ended as {answer['status']}: {details}"
    for name in re.findall(r"refused \([\w.]+\): (\w+): ", details):  # as a simulated site says
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, InputError):
            raise kind(message)
    raise RunError(f"{message}\nIts log ends:\n{superlink.run_log(run)}")  # noqa: EM102, TRY003 - log below the message
