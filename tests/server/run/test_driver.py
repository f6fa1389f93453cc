"""Laws of the loop: commit after every exchange; a killed run goes on to the same end."""

import logging
from dataclasses import replace

import pytest
from fake_federation import SITES, FakeSites, FakeTransport, make_config

from fedwinnow.curation.config.training import StudySection, TrainingSection, WarmUpSection
from fedwinnow.curation.errors import EmptySelectionError, OutputError, ProtocolError
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.protocol.replies import Refusal
from fedwinnow.server.run.driver import drive
from fedwinnow.server.run.fold import initial_state
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.transport.interface import Delivery


def timeless(state):
    """The state's bytes without what a clock says."""
    records = tuple(replace(record, seconds=0.0) for record in state.records)
    return wire.dump(replace(state, records=records))


def fresh(folder, **changes):
    """A new run in its folder."""
    config = make_config(folder, **changes)
    return initial_state(config, "fake-run"), RunFolder.open(config, resume=False)


class Killed(BaseException):
    """What no code may catch."""


def killed_after(commits, monkeypatch):
    """Let the process die right after the n-th commit."""
    left = [commits]
    commit = RunFolder.commit

    def dying(self, state):
        commit(self, state)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(RunFolder, "commit", dying)


def test_driver_runs_to_the_end_and_commits_every_state(tmp_path):
    """One commit before the first exchange and one after each; the last is the result."""
    state, store = fresh(tmp_path)
    transport = FakeTransport()
    end = drive(state, transport, store=store)
    assert end.phase == "done"
    assert len(end.records) == len(transport.asked)
    assert wire.dump(store.load()) == wire.dump(end)


def test_driver_killed_after_any_commit_resumes_to_the_same_state(tmp_path):
    """Whatever commit the process dies after: the resumed run ends with the same bytes."""
    state, store = fresh(
        tmp_path / "whole",
        warm_up=WarmUpSection(rounds=1),
        training=TrainingSection(rounds=1),
        study=StudySection(arms=("curated",)),
    )
    sites = FakeSites(arms=("curated",))
    transport = FakeTransport(sites)
    expected = timeless(drive(state, transport, store=store))
    exchanges = len(transport.asked)
    for commits in range(1, exchanges + 2):
        with pytest.MonkeyPatch.context() as patch:
            again = RunFolder(folder=tmp_path / f"kill-{commits}")
            killed_after(commits, patch)
            with pytest.raises(Killed):
                drive(state, FakeTransport(sites), store=again)
        committed = again.load()
        assert committed is not None
        assert len(committed.records) == commits - 1
        rest = FakeTransport(sites)
        assert timeless(drive(committed, rest, store=again)) == expected
        assert len(rest.asked) == exchanges - (commits - 1)


def test_driver_killed_in_the_middle_of_an_exchange_repeats_it(tmp_path):
    """Replies that were not committed are asked for again, and counted once."""
    state, store = fresh(tmp_path)
    expected = timeless(drive(state, FakeTransport(), store=store))

    def dies(site, request, reply):
        if request.header.phase == "train" and request.header.round == 2 and site == "beta":
            raise Killed
        return reply

    again = RunFolder(folder=tmp_path / "again")
    with pytest.raises(Killed):
        drive(state, FakeTransport(FakeSites(alter=dies)), store=again)
    committed = again.load()
    assert (committed.phase, committed.round) == ("train", 2)
    assert timeless(drive(committed, FakeTransport(), store=again)) == expected


def test_driver_of_a_finished_run_asks_nothing(tmp_path):
    """Driving a state in phase done returns it."""
    state, store = fresh(tmp_path)
    end = drive(state, FakeTransport(), store=store)
    idle = FakeTransport()
    assert drive(end, idle, store=store) == end
    assert not idle.asked


@pytest.mark.parametrize("phase", ["join", "probe", "warm_up", "score", "train", "evaluate"])
def test_driver_records_who_was_silent(tmp_path, phase):
    """A site that did not answer in time stands in the record with the reason; the run goes on."""
    state, store = fresh(tmp_path)
    transport = FakeTransport(silent={phase: ["beta"]})
    end = drive(state, transport, store=store, deadline=7.0)
    missing = [dict(r.missing) for r in end.records if r.phase == phase]
    assert missing
    assert all(found == {"beta": "no answer within 7 s"} for found in missing)
    if phase != "join":
        assert not any(r.missing for r in end.records if r.phase == "close")


def test_driver_ends_when_too_few_answer(tmp_path):
    """Below the minimum the run ends; the last committed state is the one before the phase."""
    state, store = fresh(tmp_path)
    state = replace(state, config=state.config.replace('"minimum_sites":1', '"minimum_sites":3'))
    with pytest.raises(ProtocolError, match=r"phase score: 2 of at least 3 .*gamma: no answer"):
        drive(state, FakeTransport(silent={"score": ["gamma"]}), store=store)
    assert store.load().phase == "score"


def test_driver_names_members_that_the_transport_forgot(tmp_path):
    """A transport that yields nothing for a member does not hide that it is missing."""

    class Forgetful(FakeTransport):
        def exchange(self, request, sites, **more):
            for delivery in super().exchange(request, sites, **more):
                if delivery.site != "gamma" or request.header.phase in {"join", "close"}:
                    yield delivery

    state, store = fresh(tmp_path)
    end = drive(state, Forgetful(), store=store)
    between = [r for r in end.records if r.phase not in {"join", "close"}]
    owed = "it missed phase probe and has not made up for it in time"
    expected = {"score": owed, "select": owed, "train": owed}
    assert all(
        dict(r.missing) == {"gamma": expected.get(r.phase, "no reply came")} for r in between
    )


def test_driver_counts_a_repeated_reply_once(tmp_path, caplog):
    """Of two replies of one site the first counts; the other is refused by the site's name."""

    class Twice(FakeTransport):
        def exchange(self, request, sites, **more):
            for delivery in super().exchange(request, sites, **more):
                yield delivery
                late = Refusal(
                    header=request.header, site=delivery.site, clause="terms", reason="again"
                )
                yield replace(delivery, reply=late, bytes_up=0, bytes_down=0)

    state, store = fresh(tmp_path / "one")
    other = RunFolder(folder=tmp_path / "two")
    expected = timeless(drive(state, FakeTransport(), store=store))
    with caplog.at_level(logging.WARNING):
        found = drive(state, Twice(), store=other)
    assert timeless(found) == expected
    assert "site beta answered twice" in caplog.text


def test_driver_adds_up_bytes_and_tells_progress(tmp_path):
    """Bytes of all deliveries stand in the record; progress hears each delivery."""
    state, store = fresh(tmp_path)
    heard: list[Delivery] = []
    transport = FakeTransport(silent={"train": ["beta"]})
    end = drive(state, transport, store=store, progress=lambda _state, _request, d: heard.append(d))
    assert len(heard) == len(SITES) * len(end.records)
    for record in end.records:
        silent = 1 if record.phase == "train" else 0
        assert (record.bytes_down, record.bytes_up) == (30, 20 * (3 - silent))
        assert record.seconds >= 0


def test_driver_stops_when_the_state_cannot_be_committed(tmp_path):
    """A run whose state cannot be written does not start: no site is asked anything."""
    state, _ = fresh(tmp_path)
    (tmp_path / "file").touch()
    transport = FakeTransport()
    with pytest.raises(OutputError):
        drive(state, transport, store=RunFolder(folder=tmp_path / "file" / "x"))
    assert not transport.asked


def test_driver_leaves_the_scores_when_nothing_is_kept(tmp_path):
    """EmptySelectionError ends the run; summaries and decision are committed to look at."""
    sites = FakeSites()
    sites.kept = {**sites.kept, "curated": dict.fromkeys(SITES, 0)}
    state, store = fresh(tmp_path)
    with pytest.raises(EmptySelectionError):
        drive(state, FakeTransport(sites), store=store)
    committed = store.load()
    assert committed.decision is not None
    assert set(committed.summaries) == set(SITES)
