"""Laws of the coordinator's seals: rising sequence numbers, one payload, pinned keys only."""

import pytest

from fedwinnow.curation.config.coordinator import CoordinatorSection, MemberSection
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.errors import ConfigError, OutputError, ProtocolError
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.protocol.envelope import seal, sign, verified
from fedwinnow.curation.protocol.keys import PrivateKey
from fedwinnow.server.transport.coordinator_envelopes import Sealer

COORDINATOR, SITE = PrivateKey.new(), PrivateKey.new()
REQUEST = m.CloseRequest(header=m.Header(run="r", phase="close"))
RECEIPT = m.Receipt(header=REQUEST.header, site="law")


@pytest.fixture
def sealer(tmp_path):
    """A coordinator that pins one site."""
    return Sealer(
        key=COORDINATOR, members={"law": SITE.public}, sequence_file=tmp_path / "state" / "sequence"
    )


def answer(sent, reply=RECEIPT):
    """What the site's agent sends back."""
    words = {"site": "law", "run": sent.run, "phase": sent.phase, "sequence": sent.sequence}
    return sign(SITE, seal(wire.encode(reply), COORDINATOR.public), ledger="head", **words)


def test_sealer_envelope_is_verified_by_the_coordinators_public_key(sealer):
    """Every request is signed for one site, run and phase, over the very bytes that travel."""
    envelope = sealer.envelope(REQUEST, "law")
    stamp = verified(envelope, COORDINATOR.public)
    assert (stamp.site, stamp.run, stamp.phase) == ("law", "r", "close")
    assert wire.decode(envelope.payload) == REQUEST
    assert sealer.sent(envelope) == stamp


def test_sealer_sites_share_one_payload(sealer):
    """A broadcast is encoded once: the same object for every site."""
    first, second = (sealer.envelope(REQUEST, site) for site in ("law", "medicine"))
    assert first.payload is second.payload
    assert first.signature != second.signature


def test_sealer_sequence_rises_over_restarts_and_a_clock_that_goes_back(sealer, monkeypatch):
    """The next number is max(time, last + 1), and the last is on the disk."""
    first = sealer.sent(sealer.envelope(REQUEST, "law")).sequence
    monkeypatch.setattr("fedwinnow.server.transport.coordinator_envelopes.time.time_ns", lambda: 5)
    again = Sealer(key=COORDINATOR, members={}, sequence_file=sealer.sequence_file)
    numbers = [again.sent(again.envelope(REQUEST, "law")).sequence for _ in range(3)]
    assert numbers == [first + 1, first + 2, first + 3]
    assert int(sealer.sequence_file.read_text()) == first + 3


def test_sealer_sends_nothing_whose_number_is_not_on_the_disk(sealer):
    """A full or missing disk ends the request before it is signed."""
    sealer.sequence_file.parent.touch()
    with pytest.raises(OutputError):
        sealer.envelope(REQUEST, "law")


def test_sealer_reply_undoes_what_the_site_sealed(sealer):
    """The honest reply is opened, and the head of the site's ledger is noted."""
    sent = sealer.sent(sealer.envelope(REQUEST, "law"))
    assert sealer.reply(answer(sent), sent) == RECEIPT
    assert sealer.ledgers == {"law": "head"}


def test_sealer_refused_reply_leaves_the_ledger_head(sealer):
    """What is refused changes nothing that is remembered."""
    old = sealer.sent(sealer.envelope(REQUEST, "law"))
    new = sealer.sent(sealer.envelope(REQUEST, "law"))
    with pytest.raises(ProtocolError, match="stamped with sequence"):
        sealer.reply(answer(old), new)
    with pytest.raises(ProtocolError, match="speaks as site 'medicine'"):
        sealer.reply(answer(new, m.Receipt(header=REQUEST.header, site="medicine")), new)
    assert sealer.ledgers == {}


def test_sealer_takes_no_reply_of_an_unpinned_site(sealer):
    """Who is not among the members is not heard, whatever it signs."""
    sent = sealer.sent(sealer.envelope(REQUEST, "medicine"))
    with pytest.raises(ProtocolError, match="not among the pinned"):
        sealer.reply(answer(sent), sent)


def test_sealer_open_needs_members_and_whole_keys(tmp_path):
    """A run without members, or with a member's key cut short, does not start."""
    key = tmp_path / "coordinator.key"
    COORDINATOR.save(key)
    coordinator = CoordinatorSection(key=str(key))
    with pytest.raises(ConfigError, match=r"\[\[members\]\]"):
        Sealer.open(RunConfig(coordinator=coordinator), tmp_path)
    for text in (SITE.public.text[:-4], "", "fedwinnow-key-1:"):
        members = (MemberSection(name="law", key=text),)
        with pytest.raises(ConfigError, match=r"members\.law\.key"):
            Sealer.open(RunConfig(coordinator=coordinator, members=members), tmp_path)
    members = (MemberSection(name="law", key=SITE.public.text),)
    sealer = Sealer.open(RunConfig(coordinator=coordinator, members=members), tmp_path)
    assert sealer.members == {"law": SITE.public}
    assert sealer.key == COORDINATOR
