"""Laws of signed and encrypted messages over Flower: pinned members, resends, nodes that move."""

import time
from dataclasses import replace

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.protocol.envelope import encrypt, sign, verify
from fedwinnow.curation.protocol.flower_records import envelope_records, read_envelope
from fedwinnow.curation.protocol.keys import PrivateKey
from fedwinnow.server.transport.codec import EnvelopeCodec
from fedwinnow.server.transport.coordinator_envelopes import CoordinatorEnvelopes
from fedwinnow.server.transport.flower_grid import GridTransport

COORDINATOR = PrivateKey.new()
KEYS = {site: PrivateKey.new() for site in ("law", "medicine")}
HEADER = m.Header(run="r", phase="close")
CLOSE = m.CloseRequest(header=HEADER)
EARLIER = m.SelectRequest(header=m.Header(run="r", phase="select"), threshold=0.5)


class Node:
    """A node with its agent: answers receipts as a site; ``fails`` is what it does first."""

    def __init__(self, site: str, *, key: PrivateKey | None = None, fails=()) -> None:
        self.site, self.key, self.fails = site, key or KEYS[site], list(fails)
        self.seen: list[m.Request] = []
        self.stamps = []
        self.payloads = []
        self.app = ClientApp()
        self.app.query("curation")(self.curation)
        self.app.query("identity")(self.identity)

    def curation(self, message, context):  # noqa: ARG002 - Flower's signature
        """What the shim brings back from the agent."""
        if self.fails:
            failure = self.fails.pop(0)
            if isinstance(failure, Exception):
                raise failure
            content = RecordDict({"shim": ConfigRecord({"error": failure})})
            return Message(content, reply_to=message)
        envelope = read_envelope(message.content)
        stamp = verify(envelope, COORDINATOR.public)
        self.stamps.append(stamp)
        request = wire.decode(envelope.payload)
        self.seen.append(request)
        reply = m.Receipt(header=request.header, site=self.site)
        words = {"site": stamp.site, "run": stamp.run, "phase": stamp.phase}
        encrypted = encrypt(wire.encode(reply), COORDINATOR.public)
        answer = sign(self.key, encrypted, sequence=stamp.sequence, **words)
        return Message(envelope_records(answer), reply_to=message)

    def identity(self, message, context):  # noqa: ARG002 - Flower's signature
        """What the node's configuration says."""
        record = ConfigRecord({"site": self.site})
        return Message(RecordDict({"identity": record}), reply_to=message)


@pytest.fixture
def transport(make_grid, tmp_path):
    """A encrypted transport over nodes by id."""

    def make(nodes, **settings):
        envelopes = CoordinatorEnvelopes(
            key=COORDINATOR,
            members={site: key.public for site, key in KEYS.items()},
            sequence_file=tmp_path / "sequence",
        )
        grid = make_grid({number: node.app for number, node in nodes.items()})
        settings = {"patience": 0.3, "poll": 0.01, "pause": 0.05, "resends": 2} | settings
        return GridTransport(grid=grid, codec=EnvelopeCodec(envelopes), **settings)

    return make


def exchange(transport, sites=(), earlier=None, deadline=5.0):
    """All deliveries of a close request."""
    return list(transport.exchange(CLOSE, sites, deadline=deadline, earlier=earlier))


def answered(deliveries):
    """Sites whose reply to the phase came."""
    return {d.site for d in deliveries if d.reply is not None and d.request is None}


def sent(transport, kind="query.curation"):
    """Node ids that got a message of this kind."""
    return [
        message.metadata.dst_node_id
        for message in transport.grid.sent
        if message.metadata.message_type == kind
    ]


def test_encrypted_grid_asks_pinned_members_only(transport):
    """At join each member's node gets one message; a node of nobody's gets none."""
    nodes = {1: Node("law"), 2: Node("medicine"), 3: Node("spy", key=KEYS["law"])}
    found = transport(nodes)
    assert answered(exchange(found)) == {"law", "medicine"}
    assert sorted(sent(found)) == [1, 2]
    assert nodes[1].stamps[0].site == "law"
    assert nodes[1].stamps[0].sequence != nodes[2].stamps[0].sequence


def test_encrypted_grid_shares_one_payload(transport):
    """The array that Flower uploads is the same object for all sites."""
    codec = transport({1: Node("law")}).codec
    contents = [codec.request(CLOSE, site) for site in KEYS]
    first, second = (content.array_records["payload"]["payload"] for content in contents)
    assert first is second


def test_encrypted_grid_asks_again_after_a_failure_of_the_way(transport):
    """A shim without agent and an app that dies are asked again, under a new sequence number."""
    node = Node("law", fails=["no agent listens there", RuntimeError("killed")])
    found = transport({1: node, 2: Node("medicine")})
    assert answered(exchange(found)) == {"law", "medicine"}
    assert sent(found).count(1) == 3
    assert len(node.seen) == 1


def test_encrypted_grid_does_not_ask_for_ever(transport):
    """After ``resends`` failures the site is missing, with the last reason."""
    found = transport({1: Node("law", fails=["no agent listens there"] * 9), 2: Node("medicine")})
    deliveries = exchange(found)
    assert answered(deliveries) == {"medicine"}
    (lost,) = (d for d in deliveries if d.reply is None)
    assert lost.site == "law"
    assert "could not reach its agent: no agent listens there" in lost.missing
    assert sent(found).count(1) == 3


def test_encrypted_grid_does_not_ask_again_after_the_deadline(transport):
    """A pause that is longer than the phase ends with the phase, and the reason is kept."""
    found = transport({1: Node("law", fails=["away"] * 9), 2: Node("medicine")}, pause=60.0)
    began = time.monotonic()
    deliveries = exchange(found, deadline=0.5)
    assert time.monotonic() - began < 2.0
    (lost,) = (d for d in deliveries if d.reply is None)
    assert "no answer within" in lost.missing
    assert "away" in lost.missing


def test_encrypted_grid_hears_no_foreign_signature(transport):
    """A node that says a member's name without its key is not that member."""
    found = transport({1: Node("law", key=PrivateKey.new()), 2: Node("medicine")})
    deliveries = exchange(found)
    assert answered(deliveries) == {"medicine"}
    assert "pinned key" in next(d for d in deliveries if d.reply is None).missing


def test_encrypted_grid_finds_the_member_beside_a_node_that_claims_its_name(transport):
    """Of two nodes with one name, the one that holds the key is found."""
    spy, law = Node("law", key=PrivateKey.new()), Node("law")
    found = transport({1: spy, 2: law, 3: Node("medicine")})
    assert answered(exchange(found)) == {"law", "medicine"}
    assert law.seen == [CLOSE]


def test_encrypted_grid_finds_a_node_that_came_back_under_another_id(transport):
    """A SuperNode without a key of its own gets a new id; its site stays the same."""
    law, medicine = Node("law"), Node("medicine")
    found = transport({1: law, 2: medicine})
    exchange(found)
    found.grid.apps[7] = found.grid.apps.pop(1)
    found.grid.contexts[7] = found.grid.contexts[1]
    assert answered(exchange(found, ("law", "medicine"))) == {"law", "medicine"}
    assert found.nodes == {"law": 7, "medicine": 2}


def test_encrypted_grid_does_not_wait_for_who_left(transport):
    """A site that is away costs a phase the pause at most, not the patience."""
    found = transport({1: Node("law"), 2: Node("medicine")}, patience=60.0)
    exchange(found)
    found.grid.apps.pop(1)
    began = time.monotonic()
    deliveries = exchange(found, ("law", "medicine"), deadline=30.0)
    assert time.monotonic() - began < 3.0
    assert answered(deliveries) == {"medicine"}
    (lost,) = (d for d in deliveries if d.reply is None)
    assert (lost.site, lost.missing) == ("law", "no reachable node is this site")


def test_encrypted_grid_knows_its_nodes_after_a_restart(transport, tmp_path):
    """A node that is at work cannot say its name: the map of names is on the disk."""
    memory = tmp_path / "nodes.json"
    nodes = {1: Node("law"), 2: Node("medicine")}
    exchange(transport(nodes, memory=memory))
    again = transport(nodes, memory=memory)
    assert answered(exchange(again, ("law", "medicine"))) == {"law", "medicine"}
    assert sent(again, "query.identity") == []


def test_encrypted_grid_asks_what_was_missed_first(transport):
    """Earlier requests go one after the other to the site that owes them, then the phase's."""
    law, medicine = Node("law"), Node("medicine")
    deliveries = exchange(transport({1: law, 2: medicine}), ("law", "medicine"), {"law": [EARLIER]})
    assert law.seen == [EARLIER, CLOSE]
    assert medicine.seen == [CLOSE]
    made_up = [d for d in deliveries if d.request is not None]
    assert [(d.site, d.request, d.reply.header.phase) for d in made_up] == [
        ("law", EARLIER, "select")
    ]
    assert answered(deliveries) == {"law", "medicine"}


def test_encrypted_grid_stops_asking_a_site_that_cannot_make_up(transport):
    """A silence on the way back ends what the site is asked in this phase."""
    law = Node("law", fails=["away"] * 9)
    found = transport({1: law, 2: Node("medicine")})
    deliveries = exchange(found, ("law", "medicine"), {"law": [EARLIER]})
    (lost,) = (d for d in deliveries if d.reply is None)
    assert (lost.site, lost.request) == ("law", EARLIER)
    assert answered(deliveries) == {"medicine"}


def test_encrypted_grid_refuses_a_reply_to_an_earlier_request(transport):
    """A recorded reply, sent again for the next request, is refused by its sequence number."""
    law = Node("law")
    recorded = []
    honest = law.curation

    def replaying(message, context):
        reply = honest(message, context)
        recorded.append(reply.content)
        return Message(recorded[0], reply_to=message)

    law.app = ClientApp()
    law.app.query("curation")(replaying)
    law.app.query("identity")(law.identity)
    found = transport({1: law, 2: Node("medicine")}, resends=0)
    assert answered(exchange(found)) == {"law", "medicine"}
    deliveries = exchange(found)
    assert answered(deliveries) == {"medicine"}
    assert "stamped with sequence" in next(d for d in deliveries if d.reply is None).missing


def test_encrypted_grid_counts_bytes_of_every_attempt(transport):
    """What was sent in vain was sent all the same."""
    once = exchange(transport({1: Node("law"), 2: Node("medicine")}))
    twice = exchange(transport({1: Node("law", fails=["away"]), 2: Node("medicine")}))
    (first,) = (d for d in once if d.site == "law")
    (second,) = (d for d in twice if d.site == "law")
    assert second.bytes_down >= 2 * first.bytes_down - 40  # digits of the sequence number
    assert replace(second, bytes_down=0, bytes_up=0) == replace(first, bytes_down=0, bytes_up=0)
