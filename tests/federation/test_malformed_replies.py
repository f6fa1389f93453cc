"""Laws of refusal: whatever one site sends instead of a reply, the run goes on as without it."""

import re
from dataclasses import replace
from functools import cache

import pytest
from fake_federation import SITES, FakeSites, at
from malformed_bench import BAD, KEYS, Bench
from malformed_kinds import KINDS

from fedwinnow.curation.errors import CurationError
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.protocol.envelope import encrypt, sign
from fedwinnow.server.run.fold import absorb, next_request
from fedwinnow.server.transport.coordinator_envelopes import CoordinatorEnvelopes


@cache
def without(phase: str) -> bytes:
    """The state after a phase in which BAD said nothing; reasons are left out."""
    state = at(phase)
    request = next_request(state)
    replies = {site: FakeSites().answer(site, request) for site in SITES if site != BAD}
    return nameless(absorb(state, replies, {BAD: "silent"}))


def nameless(state) -> bytes:
    """The state's bytes without the reasons why a site was missing."""
    records = tuple(replace(r, missing=dict.fromkeys(r.missing, "")) for r in state.records)
    return wire.dump(replace(state, records=records))


@pytest.fixture
def envelopes(tmp_path) -> CoordinatorEnvelopes:
    """The coordinator's."""
    members = {site: KEYS[site].public for site in SITES}
    return CoordinatorEnvelopes(
        key=KEYS["coordinator"], members=members, sequence_file=tmp_path / "sequence"
    )


def test_there_are_enough_kinds():
    """The issue asks for at least 30."""
    assert len(KINDS) >= 90


@pytest.mark.parametrize("kind", KINDS)
def test_malformed_reply_is_refused_by_name_and_changes_nothing_else(kind, envelopes):
    """After it the state is that of a silent site, except for the reason in the record."""
    phase, make, expected = KINDS[kind]
    state = at(phase)
    request = next_request(state)
    replies: dict[str, m.Reply] = {}
    missing: dict[str, str] = {}
    for site in SITES:
        sent = envelopes.sent(envelopes.envelope(request, site))
        honest = FakeSites().answer(site, request)
        envelope = (
            make(Bench(request=request, reply=honest, sequence=sent.sequence))
            if site == BAD
            else sign(
                KEYS[site],
                encrypt(wire.encode(honest), envelopes.key.public),
                site=site,
                run=sent.run,
                phase=sent.phase,
                sequence=sent.sequence,
            )
        )
        try:
            replies[site] = envelopes.reply(envelope, sent)
        except CurationError as error:
            missing[site] = str(error)
    after = absorb(state, replies, missing)
    assert nameless(after) == without(phase)
    reasons = after.records[-1].missing
    assert set(reasons) == {BAD}
    assert re.search(expected, reasons[BAD]), reasons[BAD]


@pytest.mark.parametrize(
    "phase", ["join", "probe", "warm_up", "measure", "score", "cluster", "select"]
)
def test_honest_reply_passes_the_same_way(phase, envelopes):
    """The bench itself is honest: what is not changed is taken."""
    state = at(phase)
    request = next_request(state)
    replies = {}
    for site in SITES:
        sent = envelopes.sent(envelopes.envelope(request, site))
        plain = wire.encode(FakeSites().answer(site, request))
        words = {"site": site, "run": sent.run, "phase": sent.phase, "sequence": sent.sequence}
        envelope = sign(KEYS[site], encrypt(plain, envelopes.key.public), **words)
        replies[site] = envelopes.reply(envelope, sent)
    assert not absorb(state, replies).records[-1].missing
