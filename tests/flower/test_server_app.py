import fcntl
import json

import pytest
from flwr.app import Context, RecordDict

from fedwinnow.client import app as client
from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.curation.errors import ConfigError, RunError
from fedwinnow.server import app as server
from fedwinnow.server.strategy import CurationStrategy
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario
from fedwinnow.simulations.runtimes.in_process import simulate

pytestmark = pytest.mark.flower


class KilledError(Exception):
    """The coordinator dies."""


@pytest.fixture(scope="module")
def scenario(tmp_path_factory):
    """A toy federation on disk."""
    return write_toy_scenario(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def in_process(scenario):
    """Record of the run without Flower."""
    return record(simulate(load_scenario(scenario, ["run.name=in-process"])))


def record(folder):
    """What a run left."""
    return json.loads((folder / "record.json").read_text())


def federation(make_grid, run_config):
    """Three nodes in another order than the sites."""
    grid = make_grid(dict.fromkeys((33, 11, 22), client.app))
    for node, context in grid.contexts.items():
        context.run_config = run_config
        context.node_config["partition-id"] = {33: 0, 11: 1, 22: 2}[node]
    return grid


def test_server_app_over_a_grid_equals_the_run_in_process(scenario, in_process, make_grid):
    """The same fold over Flower's messages gives the same numbers, bit for bit."""
    run_config = {"scenario": str(scenario), "run.name": "grid", "resume": False, "overrides": ""}
    server.main(federation(make_grid, run_config), Context(1, 0, {}, RecordDict(), run_config))
    theirs = record(scenario.parent / "runs" / "grid")
    assert theirs["adapter"]["hash"] == in_process["adapter"]["hash"]
    for key in ("threshold", "forecast", "public", "sites", "arms"):
        assert theirs[key] == in_process[key], key


def test_server_app_resumes_with_other_nodes(scenario, in_process, make_grid):
    """A coordinator that dies after the threshold goes on from its last commit, same adapter."""
    config = load_scenario(scenario, ["run.name=resumed"])
    run_config = {"scenario": str(scenario), "run.name": "resumed"}

    def die(state, request, delivery):  # noqa: ARG001 - the driver's signature
        if request.header.phase == "train":
            raise KilledError

    with pytest.raises(KilledError):
        CurationStrategy(config, progress=die).start(federation(make_grid, run_config))
    asked = federation(make_grid, run_config)
    result = CurationStrategy(config, resume=True).start(asked)
    assert record(scenario.parent / "runs" / "resumed")["adapter"] == in_process["adapter"]
    assert {message.metadata.message_type for message in asked.sent[:3]} == {"query.identity"}
    assert set(result.evaluate_metrics_clientapp) == {0, 1, 2}
    assert len(result.arrays) == 2 * 4  # A and B of q_proj and v_proj in two layers


def test_server_app_without_a_scenario_fails(make_grid):
    """A run config that names no scenario is an error that leaves main."""
    with pytest.raises(ConfigError, match="scenario"):
        server.main(make_grid({}), Context(1, 0, {}, RecordDict(), {"scenario": ""}))


def test_server_app_starts_only_while_its_supervisor_lives(tmp_path):
    """Law: who submitted a run holds its lock; where a kill has freed it, no run begins."""
    lock = tmp_path / "supervisor.lock"
    for absent in ("", str(lock)):
        server._check_supervisor(absent)  # by `flwr run`, or from another machine
    with lock.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        server._check_supervisor(str(lock))
    with pytest.raises(RunError, match="has ended; start it again"):
        server._check_supervisor(str(lock))
