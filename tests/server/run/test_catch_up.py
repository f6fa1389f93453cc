"""Laws of coming back: what was missed is sent again, byte for byte, before what rests on it."""

import re
from dataclasses import replace

import numpy as np
import pytest
from fake_federation import SITES, FakeSites, FakeTransport, at, make_config

from fedwinnow.curation.config.training import TrainingSection
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.server.run.catch_up import missed_requests, readmit
from fedwinnow.server.run.driver import drive
from fedwinnow.server.run.fold import absorb, initial_state, next_request
from fedwinnow.server.run.run_folder import RunFolder

PHASES_BEFORE_TRAINING = ("probe", "measure", "score", "select")


def driven(folder, transport):
    """A whole run."""
    config = make_config(folder, training=TrainingSection(rounds=1, steps=5))
    store = RunFolder.open(config, resume=False)
    return drive(initial_state(config, "fake-run"), transport, store=store)


def asked(transport, site):
    """(phase, round) of what a returning site was asked before anything else."""
    return [(r.header.phase, r.header.round) for s, r in transport.caught_up if s == site]


def state_where(silent, phase):
    """The state before ``phase`` of a run in which beta was silent in the given phases."""
    state = at("join")
    while state.phase != phase:
        request = next_request(state)
        replies = {site: FakeSites().answer(site, request) for site in SITES}
        missing = {}
        if state.phase in silent:
            replies.pop("beta")
            missing = {"beta": "silent"}
        state = absorb(state, replies, missing)
    return state


@pytest.mark.parametrize(
    ("away", "expected"),
    [
        (("probe",), [("probe", 0)]),
        (("warm_up",), []),
        (("measure",), [("measure", 1), ("measure", 2)]),
        (("probe", "warm_up", "measure"), [("probe", 0), ("measure", 1), ("measure", 2)]),
        (("score",), [("score", 0)]),
        (("select",), [("select", 0)]),
        (("score", "select"), [("score", 0), ("select", 0)]),
        (
            PHASES_BEFORE_TRAINING,
            [("probe", 0), ("measure", 1), ("measure", 2), ("score", 0), ("select", 0)],
        ),
        (("evaluate",), []),
        (("train",), []),
    ],
)
def test_returning_site_makes_up_for_what_the_phase_rests_on(tmp_path, away, expected):
    """It is asked oldest first, once, and takes part from then on."""
    transport = FakeTransport(silent={phase: ["beta"] for phase in away})
    end = driven(tmp_path, transport)
    assert asked(transport, "beta") == expected
    assert {site for site, _ in transport.caught_up} <= {"beta"}
    for record in end.records:
        assert ("beta" in record.missing) == (record.phase in away)
    assert sum(record.returned.get("beta", 0) for record in end.records) == len(expected)
    first = next(record for record in end.records if record.phase == "train")
    assert ("beta" in first.sites) == ("train" not in away)


def test_returning_site_is_asked_the_very_same_requests():
    """Byte for byte, so that a site which had computed them answers from its disk."""
    originals = {
        (r.header.phase, r.header.round): wire.encode(r)
        for r in (next_request(at(phase)) for phase in ("probe", "measure", "score", "select"))
    }
    state = state_where(PHASES_BEFORE_TRAINING, "train")
    again = {
        (r.header.phase, r.header.round): wire.encode(r) for r in missed_requests(state)["beta"]
    }
    # The others' medians are the same without beta, so the requests are too.
    for key in (("probe", 0), ("measure", 1)):
        assert again[key] == originals[key]
    assert set(again) == {*originals, ("measure", 2)}


def test_returning_site_that_was_never_away_owes_nothing():
    """Where everybody answered, nobody is asked twice."""
    for phase in ("score", "select", "train", "evaluate", "close"):
        assert missed_requests(at(phase)) == {}


def test_returning_site_counts_in_what_it_keeps():
    """A late kept count enters the state; the threshold and the summaries stay."""
    state = state_where(("select",), "train")
    owed = missed_requests(state)["beta"]
    after, faults = readmit(state, {"beta": [FakeSites().answer("beta", r) for r in owed]})
    assert faults == {}
    assert after.kept == at("train").kept
    assert replace(after, kept=state.kept) == state


@pytest.mark.parametrize(
    ("phase", "change", "expected"),
    [
        ("probe", lambda r: replace(r, kinds=r.kinds[::-1]), "not those of the other sites"),
        (
            "measure",
            lambda r: replace(
                r,
                table=replace(r.table, columns={k: v + 1 for k, v in r.table.columns.items()}),
            ),
            "differs from the agreed one",
        ),
        ("score", lambda r: replace(r, public_scores=r.public_scores + 0.1), "differ from"),
        ("score", lambda r: replace(r, public_scores=np.ones(2)), "not shaped"),
        ("select", lambda r: replace(r, kept={"curated": -1}), "kept count of each arm"),
        ("select", lambda r: replace(r, header=replace(r.header, run="x")), "run is 'x'"),
        (
            "score",
            lambda r: m.Refusal(
                header=r.header, site="beta", clause="policy.summaries", reason="1"
            ),
            r"refused \(policy.summaries\)",
        ),
    ],
)
def test_returning_site_that_answers_wrongly_stays_out(phase, change, expected):
    """A late reply is checked as a timely one; a faulty one changes nothing."""
    following = {"probe": "score", "measure": "score", "score": "select", "select": "train"}
    state = state_where((phase,), following[phase])
    replies = [FakeSites().answer("beta", r) for r in missed_requests(state)["beta"]]
    late = [change(r) if r.header.phase == phase else r for r in replies]
    after, faults = readmit(state, {"beta": late})
    assert list(faults) == ["beta"]
    assert faults["beta"].startswith(f"it missed phase {phase} and ")
    assert re.search(expected, faults["beta"]), faults
    assert after == state


def test_returning_site_that_does_not_make_up_may_not_go_on(tmp_path):
    """A reply to the phase alone, without what it rests on, does not count."""

    class Hasty(FakeTransport):
        def exchange(self, request, sites, *, deadline, earlier=None):  # noqa: ARG002 - it forgets
            return super().exchange(request, sites, deadline=deadline)

    end = driven(tmp_path, Hasty(silent={"score": ["beta"]}))
    for record in end.records:
        if record.phase in {"select", "train"}:
            assert record.missing == {
                "beta": "it missed phase score and has not made up for it in time"
            }


def test_returning_site_refused_by_its_own_policy_is_missing_with_the_clause(tmp_path):
    """A refusal on the way back is told by its clause, in every phase that rests on it."""

    def no(site, request, reply):
        if site == "beta" and request.header.phase == "score":
            return m.Refusal(
                header=request.header, site=site, clause="policy.summaries", reason="one is out"
            )
        return reply

    end = driven(tmp_path, FakeTransport(FakeSites(alter=no)))
    reasons = {r.phase: dict(r.missing).get("beta", "") for r in end.records}
    assert reasons["score"] == "refused (policy.summaries): one is out"
    for phase in ("select", "train"):
        assert "it missed phase score and refused (policy.summaries)" in reasons[phase]
    assert reasons["evaluate"] == ""
