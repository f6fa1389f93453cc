"""Laws of the coordinator's envelopes: rising sequence numbers, one payload, pinned keys only."""

import pytest

from fedwinnow.curation.config.coordinator import CoordinatorSection, MemberSection
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.errors import ConfigError, OutputError, ProtocolError
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.protocol.envelope import encrypt, sign, verify
from fedwinnow.curation.protocol.keys import PrivateKey
from fedwinnow.server.transport.coordinator_envelopes import CoordinatorEnvelopes

COORDINATOR, SITE = PrivateKey.new(), PrivateKey.new()
REQUEST = m.CloseRequest(header=m.Header(run="r", phase="close"))
RECEIPT = m.Receipt(header=REQUEST.header, site="law")


@pytest.fixture
def envelopes(tmp_path):
    """A coordinator that pins one site."""
    return CoordinatorEnvelopes(
        key=COORDINATOR, members={"law": SITE.public}, sequence_file=tmp_path / "state" / "sequence"
    )


def answer(sent, reply=RECEIPT):
    """What the site's agent sends back."""
    words = {"site": "law", "run": sent.run, "phase": sent.phase, "sequence": sent.sequence}
    return sign(SITE, encrypt(wire.encode(reply), COORDINATOR.public), ledger="head", **words)


def test_envelopes_envelope_is_verified_by_the_coordinators_public_key(envelopes):
    """Every request is signed for one site, run and phase, over the very bytes that travel."""
    envelope = envelopes.envelope(REQUEST, "law")
    stamp = verify(envelope, COORDINATOR.public)
    assert (stamp.site, stamp.run, stamp.phase) == ("law", "r", "close")
    assert wire.decode(envelope.payload) == REQUEST
    assert envelopes.sent(envelope) == stamp


def test_envelopes_sites_share_one_payload(envelopes):
    """A broadcast is encoded once: the same object for every site."""
    first, second = (envelopes.envelope(REQUEST, site) for site in ("law", "medicine"))
    assert first.payload is second.payload
    assert first.signature != second.signature


def test_envelopes_sequence_rises_over_restarts_and_a_clock_that_goes_back(envelopes, monkeypatch):
    """The next number is max(time, last + 1), and the last is on the disk."""
    first = envelopes.sent(envelopes.envelope(REQUEST, "law")).sequence
    monkeypatch.setattr("fedwinnow.server.transport.coordinator_envelopes.time.time_ns", lambda: 5)
    again = CoordinatorEnvelopes(key=COORDINATOR, members={}, sequence_file=envelopes.sequence_file)
    numbers = [again.sent(again.envelope(REQUEST, "law")).sequence for _ in range(3)]
    assert numbers == [first + 1, first + 2, first + 3]
    assert int(envelopes.sequence_file.read_text()) == first + 3


def test_envelopes_sends_nothing_whose_number_is_not_on_the_disk(envelopes):
    """A full or missing disk ends the request before it is signed."""
    envelopes.sequence_file.parent.touch()
    with pytest.raises(OutputError):
        envelopes.envelope(REQUEST, "law")


def test_envelopes_reply_undoes_what_the_site_encrypted(envelopes):
    """The honest reply is opened, and the head of the site's ledger is noted."""
    sent = envelopes.sent(envelopes.envelope(REQUEST, "law"))
    assert envelopes.reply(answer(sent), sent) == RECEIPT
    assert envelopes.ledgers == {"law": "head"}


def test_envelopes_refused_reply_leaves_the_ledger_head(envelopes):
    """What is refused changes nothing that is remembered."""
    old = envelopes.sent(envelopes.envelope(REQUEST, "law"))
    new = envelopes.sent(envelopes.envelope(REQUEST, "law"))
    with pytest.raises(ProtocolError, match="stamped with sequence"):
        envelopes.reply(answer(old), new)
    with pytest.raises(ProtocolError, match="speaks as site 'medicine'"):
        envelopes.reply(answer(new, m.Receipt(header=REQUEST.header, site="medicine")), new)
    assert envelopes.ledgers == {}


def test_envelopes_takes_no_reply_of_an_unpinned_site(envelopes):
    """Who is not among the members is not heard, whatever it signs."""
    sent = envelopes.sent(envelopes.envelope(REQUEST, "medicine"))
    with pytest.raises(ProtocolError, match="not among the pinned"):
        envelopes.reply(answer(sent), sent)


def test_envelopes_open_needs_members_and_whole_keys(tmp_path):
    """A run without members, or with a member's key cut short, does not start."""
    key = tmp_path / "coordinator.key"
    COORDINATOR.save(key)
    coordinator = CoordinatorSection(key=str(key))
    with pytest.raises(ConfigError, match=r"\[\[members\]\]"):
        CoordinatorEnvelopes.open(RunConfig(coordinator=coordinator), tmp_path)
    for text in (SITE.public.text[:-4], "", "fedwinnow-key-1:"):
        members = (MemberSection(name="law", key=text),)
        with pytest.raises(ConfigError, match=r"members\.law\.key"):
            CoordinatorEnvelopes.open(RunConfig(coordinator=coordinator, members=members), tmp_path)
    members = (MemberSection(name="law", key=SITE.public.text),)
    envelopes = CoordinatorEnvelopes.open(
        RunConfig(coordinator=coordinator, members=members), tmp_path
    )
    assert envelopes.members == {"law": SITE.public}
    assert envelopes.key == COORDINATOR
