"""Define the Flower ServerApp: load the scenario of the run config and start the strategy.

An error that stops the run leaves :func:`main` as an exception, so Flower's status is "failed".
"""

import json
import logging
import shlex

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedwinnow.curation.config.flower_overrides import run_config_scenario
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
    config = run_config_scenario(context.run_config)
    resume = bool(context.run_config.get("resume", False))
    given = [f"{key}={json.dumps(v)}" for key, v in sorted(context.run_config.items()) if v != ""]
    command = f"flwr run . --run-config {shlex.quote(' '.join(given))}"
    patience = config.coordinator.patience if config.coordinator.key else PATIENCE
    strategy = CurationStrategy(config, resume=resume, patience=patience, command=command)
    strategy.start(grid)


def _show_progress() -> None:
    """Log one line a phase in ``flwr log``, as Flower's process shows none of our lines itself."""
    ours = logging.getLogger("fedwinnow")
    if not ours.handlers:
        ours.addHandler(logging.StreamHandler())
        ours.setLevel(logging.INFO)
