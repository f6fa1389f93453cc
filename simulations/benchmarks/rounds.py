"""Time a round's overhead beyond computing and transfer: in process, over sockets, over Flower.

Every path sends three toy sites the same request again and again, so that each answers from its
disk. What remains is the round itself: messages, checks, policy, ledger, encryption, waiting. Over
Flower, the deployment of ``docs/deploy`` is started on this machine with warm agents, and an empty
Flower message alternates with each round in the same Flower run; the difference is our overhead.
"""

import json
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.client.site import Site
from fedwinnow.curation.config.identity import run_id, sites_folder
from fedwinnow.curation.config.load_files import load_run, load_scenario, site_configs
from fedwinnow.curation.errors import TransportError
from fedwinnow.curation.process_guard import child_environment, scratch_folder
from fedwinnow.server.deployment.flower_programs import program
from fedwinnow.server.run.fold import initial_state
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.transport.coordinator_envelopes import CoordinatorEnvelopes
from fedwinnow.simulations.benchmarks.agent_transfer import timed_pairs
from fedwinnow.simulations.benchmarks.rounds_over_flower import ask, warmed
from fedwinnow.simulations.datasets.toy_federation import SITES, write_toy_scenario
from fedwinnow.simulations.rehearsal.documented_steps import wait_until
from fedwinnow.simulations.rehearsal.loopback import open_rehearsal, write_deployment
from fedwinnow.simulations.runtimes.in_process import InProcess
from fedwinnow.simulations.runtimes.sockets import AgentAddress, SocketTransport

_APP = """\
[project]
name = "bench"
version = "0.1.0"
dependencies = []

[tool.flwr.app]
publisher = "fedwinnow"

[tool.flwr.app.components]
serverapp = "bench_app:app"
clientapp = "fedwinnow.client.app:app"

[tool.flwr.app.config]
scenario = ""
out = ""
pairs = 1
"""
_SERVER = '''\
"""The server of a benchmark: it times rounds and empty messages in turn."""

from flwr.serverapp import ServerApp

from fedwinnow.simulations.benchmarks.rounds_over_flower import measure

app = ServerApp()


@app.main()
def main(grid, context):
    measure(grid, context.run_config)
'''


def bench_in_process(rounds: int = 20) -> dict[str, float]:
    """Time a round among sites of this process, its commit included, in seconds.

    Returns:
        ``seconds`` (median of a round), ``rounds``.
    """
    with scratch_folder() as place:
        config = load_scenario(write_toy_scenario(place))
        shared = ProcessCache()
        sites = {
            site.site.name: Site(config=site, cache=shared)
            for site in site_configs(config, str(sites_folder(config)))
        }
        store, transport = RunFolder.open(config, resume=False), InProcess(sites=sites)
        state, request = warmed(transport, initial_state(config, run_id(config)))

        def one() -> None:
            ask(transport, request, state)
            store.commit(state)

        times = timed_pairs(one, lambda: None, rounds)
    return {"seconds": statistics.median(first for first, _ in times), "rounds": rounds}


def bench_deployed(pairs: int = 10) -> dict[str, float]:
    """Time a round over Flower beside an empty message, and over the agents' sockets alone.

    Args:
        pairs: Pairs of an empty message and a round, in alternating order.

    Returns:
        ``empty_seconds``, ``round_seconds``, ``overhead_seconds`` (median difference of pairs),
        ``overhead_worst_seconds``, ``socket_seconds`` (a round over the sockets), ``pairs``.

    Raises:
        TransportError: the deployment did not start, or a site did not answer.
    """
    with open_rehearsal(SITES) as stage:
        scenario = load_scenario(write_toy_scenario(stage.root / "toy"))
        stage.open()
        file = write_deployment(stage, scenario)
        for site in SITES:
            stage.admit(site)
            stage.join(site)
        home, out = stage.coordinator.private, stage.root / "times.json"
        app = stage.root / "bench"
        app.mkdir()
        (app / "pyproject.toml").write_text(_APP, encoding="utf-8")
        (app / "bench_app.py").write_text(_SERVER, encoding="utf-8")
        given = home / "bench.toml"
        words = {"scenario": str(file), "out": str(out), "pairs": pairs}
        given.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in words.items()))
        _submit(app, given, stage.coordinator.environment)
        log = stage.coordinator.log("executor")
        wait_until(out.exists, "rounds over Flower", log=log, longest=300.0 + 60.0 * pairs)
        addresses = {
            site: AgentAddress(
                socket=silo.environment["FEDWINNOW_SOCKET"], token=str(silo.folder / "run/token")
            )
            for site, silo in stage.silos.items()
        }
        config = load_run(file)
        envelopes = CoordinatorEnvelopes.open(config, home / "sockets")
        over_sockets = SocketTransport(envelopes=envelopes, addresses=addresses)
        state, request = warmed(over_sockets, initial_state(config, run_id(config)))
        sockets = timed_pairs(lambda: ask(over_sockets, request, state), lambda: None, pairs)
        return figures(json.loads(out.read_text(encoding="utf-8"))) | {
            "socket_seconds": statistics.median(first for first, _ in sockets)
        }


def figures(times: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return medians of (empty, round) seconds, and median and maximum difference in a pair."""
    over = [second - first for first, second in times]
    return {
        "empty_seconds": statistics.median(first for first, _ in times),
        "round_seconds": statistics.median(second for _, second in times),
        "overhead_seconds": statistics.median(over),
        "overhead_worst_seconds": max(over),
        "pairs": len(times),
    }


def _submit(app: Path, given: Path, environment: Mapping[str, str]) -> None:
    quiet: dict[str, Any] = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    command = [program("flwr"), "run", str(app), "federation", "--run-config", str(given)]
    done = subprocess.run(  # noqa: S603 - our own command, no shell
        [*command, "--format", "json"],
        env=child_environment() | dict(environment) | quiet,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        message = f"flwr run ended with code {done.returncode}: {done.stdout}{done.stderr}"
        raise TransportError(message)
