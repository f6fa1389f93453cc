"""Define the Flower ServerApp: load the scenario of the run config and start the strategy.

An error that stops the run leaves :func:`main` as an exception, so Flower's status is "failed".
"""

import fcntl
import json
import logging
import shlex
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedwinnow.curation.config.flower_overrides import run_config_scenario
from fedwinnow.curation.errors import RunError
from fedwinnow.server.strategy import CurationStrategy

app = ServerApp()

PATIENCE = 60.0
"""Longest wait for the nodes of a simulation to come up, seconds."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that ``scenario`` in the run config describes.

    Raises:
        CurationError: the scenario is wrong, or the run cannot go on.
    """
    _show_progress()
    _check_supervisor(str(context.run_config.get("supervisor", "")))
    config = run_config_scenario(context.run_config)
    resume = bool(context.run_config.get("resume", False))
    words = {k: v for k, v in context.run_config.items() if v != "" and k != "supervisor"}
    given = [f"{key}={json.dumps(value)}" for key, value in sorted(words.items())]
    command = f"flwr run . --run-config {shlex.quote(' '.join(given))}"
    patience = config.coordinator.patience if config.coordinator.key else PATIENCE
    strategy = CurationStrategy(config, resume=resume, patience=patience, command=command)
    strategy.start(grid)


def _check_supervisor(lock: str) -> None:
    """Refuse to start where the command that submitted this run has ended, so that nobody watches.

    Raises:
        RunError: its lock is free.
    """
    if not lock or not Path(lock).exists():
        return  # submitted by `flwr run`, or from another machine
    with Path(lock).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return
    message = "the `fedwinnow run` that submitted this Flower run has ended; start it again"
    raise RunError(message)


def _show_progress() -> None:
    """Log one line a phase in ``flwr log``, as Flower's process shows none of our lines itself."""
    ours = logging.getLogger("fedwinnow")
    if not ours.handlers:
        ours.addHandler(logging.StreamHandler())
        ours.setLevel(logging.INFO)
