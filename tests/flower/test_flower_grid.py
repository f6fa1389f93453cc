import time

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import TransportError
from fedwinnow.curation.protocol import messages, wire
from fedwinnow.server.transport.flower_grid import GridTransport, wait_for_nodes


def adapter() -> Adapter:
    """One module in two number formats."""
    return Adapter(
        base="b",
        a={"m": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)},
        b={"m": torch.ones(4, 2)},
        scales={"m": 2.0},
    )


def client(site: str, answer=None) -> ClientApp:
    """A ClientApp that answers joins and trainings as ``site``."""
    app = ClientApp()

    def reply(request):
        if isinstance(request, messages.JoinRequest):
            return messages.Receipt(header=request.header, site=site)
        return messages.TrainedAdapter(
            header=request.header,
            site=site,
            samples=3,
            adapter=request.adapter,
            losses=(1.0,),
            learning_rate=0.1,
        )

    @app.query("curation")
    def curation(message, context):  # noqa: ARG001 - Flower's signature
        text = message.content["message"]["text"]
        arrays = {k: v.numpy() for k, v in message.content["arrays"].items()}
        text, arrays = wire.to_arrays((answer or reply)(wire.from_arrays(text, arrays)))
        record = ArrayRecord({k: Array(v) for k, v in arrays.items()})
        content = RecordDict({"message": ConfigRecord({"text": text}), "arrays": record})
        return Message(content, reply_to=message)

    @app.query("identity")
    def identity(message, context):  # noqa: ARG001 - Flower's signature
        return Message(RecordDict({"identity": ConfigRecord({"site": site})}), reply_to=message)

    return app


HEADER = messages.Header(run="r", phase="join")
JOIN = messages.JoinRequest(header=HEADER, terms="{}")
TRAIN = messages.TrainRequest(
    header=messages.Header(run="r", phase="train", round=1),
    adapter=adapter(),
    step_offset=0,
    total_steps=2,
    sites=("law", "medicine"),
)


def exchange(transport, request, sites=(), deadline=5.0):
    """Deliveries by site."""
    return {d.site: d for d in transport.exchange(request, sites, deadline=deadline)}


def test_grid_transport_learns_names_at_join_and_asks_only_the_named(make_grid):
    """Names come from the join replies; later requests reach the named sites' nodes only."""
    grid = make_grid({30: client("law"), 10: client("medicine"), 20: client("finance")})
    transport = GridTransport(grid=grid, expected=3)
    joined = exchange(transport, JOIN)
    assert set(joined) == {"law", "medicine", "finance"}
    assert transport.nodes == {"law": 30, "medicine": 10, "finance": 20}
    grid.sent.clear()
    trained = exchange(transport, TRAIN, ("law", "medicine"))
    assert sorted(message.metadata.dst_node_id for message in grid.sent) == [10, 30]
    assert all(delivery.reply.header == TRAIN.header for delivery in trained.values())


def test_grid_transport_carries_bfloat16_exactly(make_grid):
    """What arrives is what was sent, bit for bit, whatever the number format."""
    transport = GridTransport(grid=make_grid({1: client("law")}))
    exchange(transport, JOIN)
    delivery = exchange(transport, TRAIN, ("law",))["law"]
    back = delivery.reply.adapter
    assert back.a["m"].dtype == torch.bfloat16
    assert torch.equal(back.a["m"], adapter().a["m"])
    assert delivery.bytes_down > 0
    assert delivery.bytes_up > 0


def test_grid_transport_sets_the_deadline_on_every_message(make_grid):
    """The time to live of a message is what is left of the phase's deadline."""
    grid = make_grid({1: client("law")})
    exchange(GridTransport(grid=grid), JOIN, deadline=40.0)
    assert 39.0 < grid.sent[0].metadata.ttl <= 40.0


def test_grid_transport_names_who_is_missing_at_the_deadline(make_grid):
    """A silent node ends neither the phase nor the wait."""
    grid = make_grid({1: client("law"), 2: client("medicine")})
    transport = GridTransport(grid=grid, expected=2)
    exchange(transport, JOIN)
    grid.silent = {2}
    began = time.monotonic()
    found = exchange(transport, TRAIN, ("law", "medicine"), deadline=1.0)
    assert time.monotonic() - began < 3.0
    assert found["law"].reply is not None
    assert found["medicine"].reply is None
    assert "no answer within 1 s" in found["medicine"].missing


def test_grid_transport_reports_an_error_of_flower_by_site(make_grid):
    """An exception in a node's app is a missing site with a reason, not a crash."""

    def broken(request):
        if isinstance(request, messages.JoinRequest):
            return messages.Receipt(header=request.header, site="law")
        message = "boom"
        raise RuntimeError(message)

    transport = GridTransport(grid=make_grid({1: client("law", broken)}))
    exchange(transport, JOIN)
    delivery = exchange(transport, TRAIN, ("law",))["law"]
    assert delivery.reply is None
    assert "boom" in delivery.missing


def test_grid_transport_refuses_a_changed_or_taken_name(make_grid):
    """A node speaks for the site that it joined as, and a name belongs to one node."""

    def liar(request):
        site = "law" if isinstance(request, messages.JoinRequest) else "medicine"
        return messages.Receipt(header=request.header, site=site)

    transport = GridTransport(grid=make_grid({1: client("law", liar), 2: client("law")}))
    joined = list(transport.exchange(JOIN, (), deadline=5.0))
    assert [d.site for d in joined if d.reply is not None] == ["law"]
    assert "another node" in next(d for d in joined if d.reply is None).missing
    assert "joined as 'law'" in exchange(transport, TRAIN, ("law",))["law"].missing


def test_grid_transport_refuses_what_is_no_reply(make_grid):
    """A request that comes back, or records of another app, are missing replies with a reason."""
    transport = GridTransport(grid=make_grid({1: client("law", lambda request: request)}))
    (delivery,) = transport.exchange(JOIN, (), deadline=5.0)
    assert "JoinRequest came where a reply was expected" in delivery.missing
    foreign = ClientApp()

    @foreign.query("curation")
    def curation(message, context):  # noqa: ARG001 - Flower's signature
        return Message(RecordDict({"x": ConfigRecord({"y": 1})}), reply_to=message)

    transport = GridTransport(grid=make_grid({1: foreign}))
    (delivery,) = transport.exchange(JOIN, (), deadline=5.0)
    assert "records are not those of a message" in delivery.missing


def test_grid_transport_finds_the_sites_of_a_resumed_run(make_grid):
    """A new server process asks the nodes for their names before the first request."""
    transport = GridTransport(
        grid=make_grid({7: client("law"), 8: client("medicine")}), patience=0.3
    )
    found = exchange(transport, TRAIN, ("law", "medicine", "finance"))
    assert found["law"].reply is not None
    assert found["medicine"].reply is not None
    assert "no reachable node" in found["finance"].missing


def test_reachable_does_not_wait_for_ever(make_grid):
    """Too few nodes are an error that says what to start."""
    with pytest.raises(TransportError, match="num-supernodes=3"):
        wait_for_nodes(make_grid({1: client("law")}), expected=3, patience=0.2)
    assert wait_for_nodes(
        make_grid({5: client("a"), 2: client("b")}), expected=2, patience=0.2
    ) == (
        2,
        5,
    )
