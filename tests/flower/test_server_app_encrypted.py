"""Law of a deployed run over a Grid: signed, encrypted, through policies, and the same adapter."""

import json

import pytest
from answer_envelope import answer_envelope
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from toy_deployment_files import write_toy_deployment

from fedwinnow.client.boundary.guarded_site import GuardedSite
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.curation.config.load_files import load_run, load_scenario, load_site
from fedwinnow.curation.protocol.flower_records import envelope_records, read_envelope
from fedwinnow.server import app as server
from fedwinnow.simulations.runtimes.in_process import simulate

pytestmark = pytest.mark.flower


@pytest.fixture
def deployment(tmp_path):
    """``run.toml`` with three site folders beside it."""
    return write_toy_deployment(tmp_path)


def node(boundary: GuardedSite) -> ClientApp:
    """A node whose shim reaches its agent in this process."""
    app = ClientApp()

    @app.query("curation")
    def curation(message, context):  # noqa: ARG001 - Flower's signature
        answer = answer_envelope(read_envelope(message.content), boundary)
        return Message(envelope_records(answer), reply_to=message)

    @app.query("identity")
    def identity(message, context):  # noqa: ARG001 - Flower's signature
        record = ConfigRecord({"site": boundary.site.name})
        return Message(RecordDict({"identity": record}), reply_to=message)

    return app


def test_server_app_of_a_encrypted_run_ends_with_the_adapter_of_the_run_in_process(
    deployment, make_grid
):
    """Signatures, policies, ledgers and encryption change no number; no plain message is sent."""
    config, shared = load_run(deployment), ProcessCache()
    names = [member.name for member in config.members]
    boundaries = [
        GuardedSite.open(load_site(deployment.parent / name / "site.toml"), cache=shared)
        for name in names
    ]
    grid = make_grid({30 - i: node(boundary) for i, boundary in enumerate(boundaries)})
    run_config = {"scenario": str(deployment), "resume": False, "overrides": ""}
    server.main(grid, Context(1, 0, {}, RecordDict(), run_config))
    for boundary in boundaries:
        boundary.ledger.close()
    theirs = json.loads((deployment.parent / "runs" / config.run.name / "record.json").read_text())
    scenario = load_scenario(
        deployment.parent / "scenario.toml", ["run.name=plain", 'study.arms=["curated"]']
    )
    ours = json.loads((simulate(scenario) / "record.json").read_text())
    assert theirs["adapter"]["hash"] == ours["adapter"]["hash"]
    assert theirs["threshold"] == ours["threshold"]
    carried = {
        frozenset(message.content.config_records)
        for message in grid.sent
        if message.metadata.message_type == "query.curation"
    }
    assert carried == {frozenset({"envelope"})}
    assert not any(phase["missing"] for phase in theirs["phases"])
