"""Laws of clusters in the fold: their place, what becomes of sums, who was away, off is off."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from fake_federation import (
    SITES,
    FakeSites,
    FakeTransport,
    at,
    make_config,
    replies_to,
    run_until,
    with_clusters,
)
from report_record import make_record

from fedwinnow.curation.config.identity import identity
from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.config.scoring import ClustersSection, RunSection
from fedwinnow.curation.config.strict_toml import canonical_json, parse
from fedwinnow.curation.config.training import TrainingSection
from fedwinnow.curation.errors import ConfigError, ProtocolError
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.scores import loss_clusters
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.server.report.build_record import _clusters as recorded
from fedwinnow.server.report.selection_sections import clusters as drawn
from fedwinnow.server.run.catch_up import missed_requests
from fedwinnow.server.run.driver import drive
from fedwinnow.server.run.fold import absorb, initial_state, next_request
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.state import RunState


def upto(number):
    """The state before an exchange of clusters, or before the selection (4)."""
    state = at("cluster")
    for _ in range(number - 1):
        state = absorb(state, replies_to(next_request(state)))
    return state


def test_clusters_stand_between_score_and_select():
    """One exchange an iteration, then one selection by quotas; all under one threshold."""
    state, asked = run_until(with_clusters(), "score"), []
    while state.phase != "evaluate":
        asked.append(next_request(state))
        state = absorb(state, replies_to(asked[-1]))
    places = [(r.header.phase, r.header.round) for r in asked]
    assert places == [("score", 0), *(("cluster", n) for n in (1, 2, 3)), ("select", 0)]
    assert {r.threshold for r in asked[1:]} == {state.decision.value}
    assert isinstance(asked[-1], m.QuotaRequest)


def test_clusters_start_from_the_agreed_public_rows():
    """Round 1 sends k-means++ of the median rows: whoever has these can compute it."""
    state = at("cluster")
    rows = loss_clusters.loss_trajectories(state.tables)
    own = loss_clusters.initial_centroids(
        loss_clusters.standardise_losses(rows, rows), 4, derive_seed(0, "clusters")
    )
    assert np.array_equal(next_request(state).centroids, own)


def test_clusters_move_to_the_means_over_all_sites():
    """Oracle: sum of the sites' sums over sum of their counts; where that is 0, as before."""
    state = upto(1)
    request = next_request(state)
    replies = replies_to(request).values()
    expected = request.centroids.copy()
    for k in range(4):
        if held := sum(reply.counts[k] for reply in replies):
            expected[k] = sum(reply.sums[k] for reply in replies) / held
    moved = next_request(absorb(state, replies_to(request))).centroids
    assert np.allclose(moved, expected, atol=1e-12)
    assert not np.array_equal(moved, request.centroids)


def test_clusters_quotas_are_those_of_the_last_exchange():
    """Totals are the told counts, quotas fill half of them, and the centroids stay."""
    before, state = upto(3), upto(4)
    said = replies_to(next_request(before))
    request = next_request(state)
    totals = [sum(said[site].counts[k] for site in SITES) for k in range(4)]
    assert list(request.totals) == totals
    quotas = loss_clusters.fill_quotas(totals, loss_clusters.samples_to_keep(totals, 0.5))
    assert state.clusters.quotas == quotas
    assert request.extra == loss_clusters.extra_by_site(quotas, {s: said[s].counts for s in SITES})
    assert np.array_equal(state.clusters.centroids, before.clusters.centroids)


def test_clusters_one_iteration_sets_quotas_by_the_start():
    """Edge: a single exchange counts only."""
    section = ClustersSection(count=2, iterations=1)
    state = run_until(make_config(clusters=section), "select")
    assert len(state.clusters.quotas) == 2
    assert sum(record.phase == "cluster" for record in state.records) == 1


def test_clusters_more_than_public_rows_are_as_many_as_there_are():
    """Edge: six public rows give six centroids at most, and the run goes on with them."""
    config = make_config(clusters=ClustersSection(count=99, iterations=1))
    assert next_request(run_until(config, "cluster")).centroids.shape == (6, 3)
    assert run_until(config, "evaluate").phase == "evaluate"


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_clusters_order_of_replies_changes_nothing(number):
    """Whatever the order of arrival: the same state, bit for bit; and a state comes back whole."""
    state = upto(number)
    replies = replies_to(next_request(state))
    expected = wire.dump(absorb(state, replies))
    for order in itertools.permutations(SITES):
        assert wire.dump(absorb(state, {site: replies[site] for site in order})) == expected
    assert wire.dump(wire.restore(expected, RunState)) == expected


@pytest.mark.parametrize("number", [1, 3])
def test_clusters_of_too_few_sites_end_the_run(number):
    """Below run.minimum_sites, or below the phase's own quorum, with the reason of each."""
    state = upto(number)
    config = with_clusters(run=RunSection(name="fake", minimum_sites=3, trajectory="global"))
    state = replace(state, config=canonical_json(config))
    replies = replies_to(next_request(state))
    del replies["beta"]
    with pytest.raises(ProtocolError, match=r"phase cluster: 2 of at least 3.*beta: gone"):
        absorb(state, replies, {"beta": "gone"})


def silent_at(number):
    """A transport whose site beta says nothing in one exchange of clusters, or in all (0)."""

    class Silent(FakeTransport):
        def exchange(self, request, sites, **rest):
            header = request.header
            away = header.phase == "cluster" and number in {0, header.round}
            self.silent = {"cluster": ["beta"]} if away else {}
            return super().exchange(request, sites, **rest)

    return Silent()


@pytest.mark.parametrize(("number", "expected"), [(1, []), (2, []), (3, [3]), (0, [3])])
def test_clusters_site_that_was_away_makes_up_for_the_last_exchange_alone(
    tmp_path, number, expected
):
    """Earlier ones went on without it; quotas stay as they are, and it takes part again."""
    config = with_clusters(output=tmp_path, training=TrainingSection(rounds=1, steps=5))
    transport = silent_at(number)
    store = RunFolder.open(config, resume=False)
    end = drive(initial_state(config, "fake-run"), transport, store=store)
    assert [(s, r.header.phase, r.header.round) for s, r in transport.caught_up] == [
        ("beta", "cluster", n) for n in expected
    ]
    away = [r.round for r in end.records if r.phase == "cluster" and "beta" in r.missing]
    assert away == ([1, 2, 3] if number == 0 else [number])
    assert ("beta" in end.clusters.counts) == (not expected)
    assert set(end.kept["curated"]) == set(SITES)
    totals = [sum(counts[k] for counts in end.clusters.counts.values()) for k in range(4)]
    assert list(end.clusters.totals) == totals


def test_clusters_last_exchange_is_sent_again_byte_for_byte():
    """A site that had computed it answers from its disk."""
    state = upto(3)
    original = next_request(state)
    replies = replies_to(original)
    del replies["beta"]
    after = absorb(state, replies, {"beta": "silent"})
    (again,) = missed_requests(after)["beta"]
    assert wire.encode(again) == wire.encode(original)


def test_clusters_off_send_no_new_byte():
    """With count = 0: the terms, the run's id and every request are what they were without them."""
    config = make_config()
    for text in (canonical_json(config), canonical_json(config.terms()), identity(config)):
        assert "cluster" not in text
    assert canonical_json(config) == canonical_json(replace(config, clusters=ClustersSection()))
    terms = canonical_json(with_clusters().terms())
    assert json.loads(terms)["clusters"] == {"count": 4, "iterations": 3, "budget": 0.5}
    assert parse(json.loads(terms), RunTerms).clusters.count == 4
    assert parse(json.loads(canonical_json(config.terms())), RunTerms) == config.terms()
    state = run_until(config, "select")
    assert isinstance(next_request(state), m.SelectRequest)
    assert state.clusters is None
    assert recorded(state) is None
    assert drawn(make_record({"clusters": None})) is None


def test_clusters_stand_in_record_and_report():
    """What each cluster holds and keeps; empty ones are told by number."""
    state = upto(4)
    found = recorded(state)
    assert found.counts == state.clusters.totals
    assert sum(found.quotas) == loss_clusters.samples_to_keep(found.counts, 0.5)
    assert len(found.centroids) == 4
    shown = drawn(replace(make_record(), clusters=found))
    (table,) = shown["blocks"]
    assert len(table["rows"]) == sum(count > 0 for count in found.counts)
    empty = replace(found, counts=(0, 0, 0, 0))
    assert drawn(replace(make_record(), clusters=empty)) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": -1},
        {"count": 1025},
        {"iterations": 0},
        {"iterations": 101},
        {"budget": 0.0},
        {"budget": 1.01},
        {"budget": float("nan")},
    ],
)
def test_clusters_settings_out_of_range_are_refused_by_name(wrong):
    """Each setting names itself and its range."""
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"clusters.{name}"):
        ClustersSection(**wrong)


def test_clusters_of_sites_that_hold_nothing_are_all_empty():
    """Edge: no sample passes: quotas of 0, no centroid moves, and the selection is still asked."""

    def nothing(_site, request, reply):
        if isinstance(request, m.ClusterRequest):
            return replace(reply, counts=(0,) * 4, sums=np.zeros_like(reply.sums))
        return reply

    state = run_until(with_clusters(), "cluster")
    start = state.clusters.centroids
    while state.phase == "cluster":
        state = absorb(state, replies_to(next_request(state), FakeSites(alter=nothing)))
    assert state.clusters.quotas == (0, 0, 0, 0)
    assert np.array_equal(state.clusters.centroids, start)
    assert next_request(state).totals == (0, 0, 0, 0)
