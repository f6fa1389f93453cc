"""Laws of reviewers in the fold: who carries them, when, to whom, and that other runs know none."""

from dataclasses import replace

import pytest
from fake_federation import SITES, FakeSites, at, make_config, nudged, replies_to

from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.config.scoring import ScorerSection
from fedwinnow.curation.errors import ProtocolError
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.server.run.catch_up import missed_requests
from fedwinnow.server.run.fold import absorb, initial_state, next_request
from fedwinnow.server.state import RunState

COMMITTEE = ScorerSection(name="committee")


def folded(config, until, silent=()):
    """The state before a phase, and every request up to it; ``silent``: (phase, round, site)."""
    state, asked = initial_state(config, "fake-run"), []
    while state.phase != until:
        request = next_request(state)
        asked.append(request)
        replies = replies_to(request)
        for phase, number, site in silent:
            if (phase, number) == (request.header.phase, request.header.round):
                replies.pop(site, None)
        state = absorb(state, replies, dict.fromkeys(set(SITES) - set(replies), "silent"))
    return state, asked


def measured(asked):
    """The measure requests by checkpoint."""
    return {r.checkpoint: r for r in asked if isinstance(r, m.MeasureRequest)}


def test_reviewers_are_the_members_adapters_of_the_last_warm_up_round():
    """Only the last measure request carries them: by name, each what its site sent, unmerged."""
    state, asked = folded(make_config(scorer=COMMITTEE), "score")
    requests_by = measured(asked)
    assert dict(requests_by[1].reviewers) == {}
    last = [r for r in asked if isinstance(r, m.TrainRequest)][-1]
    sent = {site: reply.adapter for site, reply in replies_to(last).items()}
    found = requests_by[2].reviewers
    assert tuple(found) == SITES
    assert {s: adapter_hash(a) for s, a in found.items()} == {
        s: adapter_hash(a) for s, a in sent.items()
    }
    assert adapter_hash(requests_by[2].adapter) not in {adapter_hash(a) for a in found.values()}
    back = wire.decode(wire.encode(requests_by[2]))
    assert {s: adapter_hash(a) for s, a in back.reviewers.items()} == {
        s: adapter_hash(a) for s, a in found.items()
    }
    again = wire.restore(wire.dump(state), RunState)
    assert wire.dump(again) == wire.dump(state)


def test_runs_without_reviews_have_no_field_for_them():
    """Neither request, card nor state names reviewers or a teacher: the bytes are the old."""
    for phase in ("join", "measure", "score"):
        request = next_request(at(phase))
        assert b"reviewers" not in wire.encode(request)
        assert b"reviewers" not in wire.dump(at(phase))
    card = replies_to(next_request(at("join")))["alpha"].card
    assert b"teacher" not in wire.dump(card)
    assert wire.restore(wire.dump(card), m.SiteCard) == card
    told = replace(card, teacher="abc")
    assert wire.restore(wire.dump(told), m.SiteCard) == told


def test_comparison_with_a_committee_carries_reviewers_too():
    """Whoever reads reviews makes them travel, also where it decides nothing."""
    scorer = ScorerSection(name="perplexity", comparison=("committee",))
    _, asked = folded(make_config(scorer=scorer), "score")
    assert tuple(measured(asked)[2].reviewers) == SITES


def test_returning_site_is_asked_with_the_same_reviewers():
    """A site that missed both measurements gets the very requests of the others, byte for byte."""
    config = make_config(scorer=COMMITTEE)
    silent = [("measure", 1, "beta"), ("measure", 2, "beta")]
    state, asked = folded(config, "score", silent)
    owed = missed_requests(state)["beta"]
    assert [wire.encode(r) for r in owed] == [
        wire.encode(r) for _, r in sorted(measured(asked).items())
    ]


def test_fewer_than_three_members_cannot_review():
    """At join, and where too few adapters came of the last warm-up: count, reasons, cure."""
    config = make_config(scorer=COMMITTEE)
    with pytest.raises(ProtocolError, match="scorer 'committee' needs reviewers from at least 3"):
        folded(config, "probe", [("join", 0, "beta")])
    with pytest.raises(ProtocolError, match=r"2 are there \(alpha, gamma; beta: silent\)"):
        folded(config, "score", [("warm_up", 2, "beta")])
    state, _ = folded(config, "measure", [("warm_up", 1, "beta")])  # an earlier round is no review
    assert dict(state.reviewers) == {}


def test_reviewer_with_a_nan_ends_at_the_server_by_name():
    """A site whose warm-up went astray is no reviewer: it is missing, with the reason."""
    config = make_config(scorer=COMMITTEE)
    state, _ = folded(config, "warm_up")
    while (request := next_request(state)).header.round < 2:
        state = absorb(state, replies_to(request))
        while state.phase != "warm_up":
            state = absorb(state, replies_to(next_request(state)))

    def broken(site, _request, reply):
        if site != "beta":
            return reply
        bad = nudged(reply.adapter, "x", by=float("nan"))
        return replace(reply, adapter=bad)

    with pytest.raises(ProtocolError, match=r"beta: is refused: adapter of site 'beta'"):
        absorb(state, replies_to(request, FakeSites(alter=broken)))


def test_teacher_of_the_majority_counts_at_join():
    """A site with another teacher is named; with none anywhere nobody is."""
    config = make_config()
    request = next_request(initial_state(config, "fake-run"))

    def taught(site, _request, reply):
        teacher = "other" if site == "gamma" else "teacher"
        return replace(reply, card=replace(reply.card, teacher=teacher))

    state = absorb(initial_state(config, "fake-run"), replies_to(request, FakeSites(alter=taught)))
    assert state.sites == ("alpha", "beta")
    assert state.records[0].missing == {"gamma": "teacher other differs from the others' teacher"}
    assert all(card.teacher == "teacher" for card in state.members)
