import json

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedwinnow.client import app as rim
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import ConfigError
from fedwinnow.curation.protocol import messages, wire

HEADER = messages.Header(run="r", phase="train", round=1, adapter="abc")
ADAPTER = Adapter(
    base="b",
    a={"z": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "m": torch.ones(1, 2)},
    b={"z": torch.ones(4, 2), "m": torch.full((3, 1), 0.1)},
    scales={"z": 2.0, "m": 1.0},
)
TRAIN = messages.TrainRequest(
    header=HEADER, adapter=ADAPTER, step_offset=0, total_steps=2, sites=("law",)
)


class Echo:
    """A site that sends the adapter back."""

    name = "law"

    def handle(self, request):
        """Answer as if trained."""
        return messages.TrainedAdapter(
            header=request.header,
            site=self.name,
            samples=2,
            adapter=request.adapter,
            losses=(1.0,),
            learning_rate=0.1,
        )


@pytest.fixture(autouse=True)
def flower_task(monkeypatch):
    """Messages need a Flower task to belong to."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def context(node=None, run=None) -> Context:
    """What Flower knows of a node and a run."""
    return Context(1, 5, node or {}, RecordDict(), run or {})


def ask(content: RecordDict, where: Context, action: str = "query.curation") -> RecordDict:
    """Content of the app's reply."""
    return rim.app(Message(content, 5, action), where).content


def records(message) -> RecordDict:
    """A message of ours as Flower's records."""
    text, arrays = wire.to_arrays(message)
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return RecordDict({"message": ConfigRecord({"text": text}), "arrays": record})


def decoded(content: RecordDict):
    """Flower's records as a message of ours."""
    arrays = {name: array.numpy() for name, array in content["arrays"].items()}
    return wire.from_arrays(content["message"]["text"], arrays)


def test_client_app_carries_request_and_reply_exactly(monkeypatch):
    """What the site gets is what was sent, and what it says comes back, bfloat16 included."""
    monkeypatch.setattr(rim, "site_of", lambda _: Echo())
    reply = decoded(ask(records(TRAIN), context()))
    assert reply.header == HEADER
    assert list(reply.adapter.a) == list(ADAPTER.a)
    for module in ADAPTER.modules:
        assert reply.adapter.a[module].dtype == ADAPTER.a[module].dtype
        assert torch.equal(reply.adapter.a[module], ADAPTER.a[module])
        assert torch.equal(reply.adapter.b[module], ADAPTER.b[module])


def test_client_app_tells_nothing_of_an_exception(monkeypatch):
    """An exception's text stays in the site's log; the reply names a clause only."""

    class Broken(Echo):
        def handle(self, request):
            raise RuntimeError(f"secret of {request}")  # noqa: EM102, TRY003 - the text is the point

    monkeypatch.setattr(rim, "site_of", lambda _: Broken())
    reply = decoded(ask(records(TRAIN), context()))
    assert isinstance(reply, messages.Refusal)
    assert (reply.header, reply.site, reply.clause) == (HEADER, "law", "failed")
    assert "secret" not in reply.reason


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"message": ConfigRecord({"text": "{"}), "arrays": ArrayRecord()}),
        RecordDict(
            {"message": ConfigRecord({"text": json.dumps({"kind": "os.system", "body": 1})})}
        ),
        records(messages.Receipt(header=HEADER, site="x")),
    ],
    ids=["nothing", "broken", "foreign", "a reply"],
)
def test_client_app_refuses_what_is_no_request(monkeypatch, content):
    """Anything but a request is refused without asking the site."""

    class Untouched(Echo):
        def handle(self, request):
            pytest.fail(f"asked with {request}")

    monkeypatch.setattr(rim, "site_of", lambda _: Untouched())
    reply = decoded(ask(content, context()))
    assert isinstance(reply, messages.Refusal)
    assert reply.site == "law"


def scenario(folder, sites=("law", "medicine")):
    """A scenario file with sites whose data is never opened here."""
    text = "".join(f'[[sites]]\nname = "{site}"\ndata = "{site}.jsonl"\n' for site in sites)
    path = folder / "scenario.toml"
    path.write_text(f'[run]\nname = "r"\noutput = "{folder}/runs"\n{text}')
    return str(path)


def test_client_app_is_the_site_of_its_partition(tmp_path):
    """Partition i is the i-th site; overrides count; the same node gets the same object."""
    run = {"scenario": scenario(tmp_path), "model.max_length": 64, "overrides": ""}
    first = rim.site_of(context({"partition-id": 1, "num-partitions": 2}, run))
    assert first.name == "medicine"
    assert first.config.model.max_length == 64
    assert first.config.simulation
    assert first.config.work == f"{tmp_path}/runs/r/sites/medicine"
    assert rim.site_of(context({"partition-id": 1}, run)) is first
    other = rim.site_of(context({"partition-id": 0}, run))
    assert other.name == "law"
    assert other.cache is first.cache


def test_client_app_refuses_a_partition_without_a_site(tmp_path):
    """More nodes than sites: the surplus node says so instead of answering."""
    where = context({"partition-id": 2}, {"scenario": scenario(tmp_path)})
    with pytest.raises(ConfigError, match="num-supernodes=2"):
        rim.site_of(where)
    reply = decoded(ask(records(TRAIN), where))
    assert (reply.clause, reply.site) == ("failed", "")
    assert ask(RecordDict(), where, "query.identity")["identity"]["site"] == ""


def test_client_app_of_a_deployment_takes_no_file_from_the_server(tmp_path):
    """Without a partition the operator's agent-socket decides, never the server's scenario."""
    where = context({}, {"scenario": scenario(tmp_path)})
    with pytest.raises(ConfigError, match="agent-socket"):
        rim.site_of(where)
    node = {"site": "clinic", "agent-socket": str(tmp_path / "agent.sock")}
    where = context(node, {"scenario": scenario(tmp_path)})
    assert ask(RecordDict(), where, "query.identity")["identity"]["site"] == "clinic"
