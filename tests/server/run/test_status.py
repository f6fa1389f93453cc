"""Laws of the status, the deadlines and the quorum of a run."""

import time
from dataclasses import replace

import pytest
from fake_federation import SITES, FakeSites, FakeTransport, make_config

from fedwinnow.curation.config.coordinator import (
    CoordinatorSection,
    DeadlinesSection,
    QuorumSection,
)
from fedwinnow.curation.config.training import StudySection, TrainingSection, WarmUpSection
from fedwinnow.curation.errors import ConfigError, DataError, ProtocolError
from fedwinnow.curation.protocol.replies import Refusal
from fedwinnow.server.run.driver import drive
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.run.status import read_status, status_file
from fedwinnow.server.transport.interface import Delivery

SHORT = {
    "warm_up": WarmUpSection(rounds=1),
    "training": TrainingSection(rounds=1),
    "study": StudySection(arms=("curated",)),
}


def sites(**more):
    """Fake sites of the one arm."""
    return FakeSites(arms=("curated",), **more)


def begun(folder, **changes):
    """A new run and its folder."""
    config = make_config(folder, **SHORT, **changes)
    store = RunFolder.open(config, resume=False)
    return config, store, store.begin(config, "fake-run")


def test_status_tells_of_the_exchange_as_it_goes_on(tmp_path):
    """After each delivery the file says who answered, at what cost, who is missing and why."""
    _, store, state = begun(tmp_path)
    seen = []

    class Watched(FakeTransport):
        def exchange(self, request, sites, **more):
            for delivery in super().exchange(request, sites, **more):
                yield delivery
                seen.append(read_status(store.folder))

    before = time.time()
    drive(state, Watched(sites(), silent={"train": ["gamma"]}), store=store)
    first = seen[0]
    assert (first["run"], first["phase"], first["round"], first["arm"]) == (
        "fake-run",
        "join",
        0,
        "",
    )
    assert before <= first["began"] <= time.time()
    assert first["ends"] - first["began"] == pytest.approx(DeadlinesSection().join)
    assert set(first["answered"]) == {"alpha"}
    assert first["answered"]["alpha"]["bytes_up"] == 20
    last_training = [one for one in seen if one["phase"] == "train"][-1]
    assert last_training["members"] == list(SITES)
    assert "no answer within" in last_training["missing"]["gamma"]
    end = read_status(store.folder)
    assert end["done"]
    assert end["attempts"] == 1
    assert end["bytes_down"] == sum(one["bytes_down"] for one in end["phases"]) > 0


def test_status_tells_why_a_run_stopped_and_how_often_it_was_tried(tmp_path):
    """An error that ends the run stands in the file until the next attempt."""
    config, store, state = begun(tmp_path, quorum=QuorumSection(score=3))
    for attempt in (1, 2):
        with pytest.raises(ProtocolError):
            drive(state, FakeTransport(sites(), silent={"score": ["beta"]}), store=store)
        found = read_status(store.folder)
        assert found["attempts"] == attempt
        assert found["stopped"].startswith("ProtocolError: phase score: 2 of at least 3")
        assert not found["done"]
        state = store.begin(config, "fake-run")
    drive(state, FakeTransport(sites()), store=store)
    end = read_status(store.folder)
    assert (end["attempts"], end["stopped"], end["done"]) == (3, "", True)


def test_status_shows_refusals_and_returns(tmp_path):
    """A refusal is missing with its clause; a site that makes up is shown as returning."""
    _, store, state = begun(tmp_path)
    seen = {}

    def alter(site, request, reply):
        seen.setdefault((request.header.phase, site), read_status(store.folder))
        if (site, request.header.phase) == ("alpha", "probe"):
            return Refusal(header=request.header, site=site, clause="policy.phases", reason="no")
        return reply

    drive(state, FakeTransport(sites(alter=alter), silent={"score": ["beta"]}), store=store)
    assert seen["probe", "beta"]["missing"] == {"alpha": "refused (policy.phases): no"}
    assert seen["select", "gamma"]["returning"] == {"beta": "score"}


def test_status_of_no_run_is_a_named_error(tmp_path):
    """A folder without a run, or a file cut short, is told as such."""
    with pytest.raises(DataError, match="give a run folder"):
        read_status(tmp_path)
    status_file(tmp_path).parent.mkdir()
    status_file(tmp_path).write_text('{"run": ')
    with pytest.raises(DataError, match="expected the status of a run"):
        read_status(tmp_path)


def test_driver_gives_each_phase_its_own_deadline(tmp_path):
    """The transport is told the phase's deadline; the caller's own limit is never passed."""
    deadlines = DeadlinesSection(join=11.0, probe=12.0, train=13.0, evaluate=900.0)
    _, store, state = begun(tmp_path, deadlines=deadlines)
    told = {}

    class Asked(FakeTransport):
        def exchange(self, request, sites, *, deadline, **more):
            told[request.header.phase] = deadline
            return super().exchange(request, sites, deadline=deadline, **more)

    drive(state, Asked(sites()), store=store, deadline=500.0)
    assert (told["join"], told["probe"], told["train"]) == (11.0, 12.0, 13.0)
    assert (told["evaluate"], told["measure"]) == (500.0, 500.0)


@pytest.mark.parametrize("phase", ["join", "probe", "warm_up", "score", "select", "evaluate"])
def test_driver_needs_the_quorum_of_the_phase(tmp_path, phase):
    """Below its quorum a phase ends the run, whatever the other phases need; at it, it goes on."""
    _, store, state = begun(tmp_path, quorum=QuorumSection(**{phase: 2}))
    silent = {phase: ["alpha", "beta"]}
    with pytest.raises(ProtocolError, match=f"phase {phase}: 1 of at least 2 .*quorum.{phase}"):
        drive(state, FakeTransport(sites(), silent=silent), store=store)
    assert store.load().phase == phase
    assert (
        drive(store.load(), FakeTransport(sites(), silent={phase: ["beta"]}), store=store).phase
        == "done"
    )


def test_store_lets_waits_quorum_and_keys_change_on_resume(tmp_path):
    """They are no part of what the run is; the resumed run goes by the new ones."""
    config, store, state = begun(tmp_path)
    store.commit(state)
    changed = replace(
        config,
        deadlines=DeadlinesSection(join=5.0),
        quorum=QuorumSection(join=3),
        coordinator=CoordinatorSection(attempts=9),
    )
    again = RunFolder.open(changed, resume=True).begin(changed, "fake-run")
    told = []

    class Asked(FakeTransport):
        def exchange(self, request, sites, *, deadline, **more):
            told.append(deadline)
            return super().exchange(request, sites, deadline=deadline, **more)

    with pytest.raises(ProtocolError, match="2 of at least 3"):
        drive(again, Asked(sites(), silent={"join": ["beta"]}), store=store)
    assert told == [5.0]
    with pytest.raises(ConfigError, match="differs"):
        RunFolder.open(replace(changed, run=replace(config.run, seed=4)), resume=True)


def test_driver_late_and_repeated_deliveries_of_a_site_change_nothing(tmp_path):
    """The first reply counts; a second one, another's or one to an older request is refused."""
    first = FakeTransport(sites())
    _, store, state = begun(tmp_path / "one")
    expected = drive(state, first, store=store)
    older = {}

    class Noisy(FakeTransport):
        def exchange(self, request, sites, **more):
            for delivery in super().exchange(request, sites, **more):
                yield delivery
                yield Delivery(site=delivery.site, reply=older.get(delivery.site, delivery.reply))
                yield Delivery(site="nobody", reply=None, missing="is no member")
                older[delivery.site] = delivery.reply

    _, store, state = begun(tmp_path / "two")
    found = drive(state, Noisy(sites()), store=store)
    for one, other in zip(expected.records, found.records, strict=True):
        assert (one.sites, one.public_losses, one.merge) == (
            other.sites,
            other.public_losses,
            other.merge,
        )
        assert set(other.missing) == {"nobody"}
    assert found.kept == expected.kept
    assert found.decision == expected.decision
