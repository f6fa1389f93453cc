"""Laws of clusters at a site: what it tells, what it keeps of each, and what it refuses."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from cluster_silo import ask, points_of, quotas, silo, terms_of

from fedwinnow.client.phases import cluster, select
from fedwinnow.client.phases.cluster import smallest_group
from fedwinnow.curation.config.site import PolicySection
from fedwinnow.curation.errors import ProtocolError, RefusalError
from fedwinnow.curation.scores import loss_clusters


def made_up(seed, number):
    """Losses of three kinds of trajectory, and scores on a coarse scale, so that some are equal."""
    draw = np.random.default_rng(seed)
    centres = np.array([[2.0, 1.0], [4.0, 4.0], [3.0, 0.5]])[draw.integers(0, 3, size=number)]
    return centres + draw.normal(scale=0.4, size=(number, 2)), draw.integers(0, 9, number) / 8


def federation(folder, sizes, **rest):
    """Silos of these sizes."""
    return {
        f"site-{i}": silo(folder / str(i), *made_up(i, n), site=f"site-{i}", **rest)
        for i, n in enumerate(sizes)
    }


def exchanged(works, threshold=float("-inf")):
    """All exchanges, and the selection's request, as the server makes them."""
    centroids = points_of(works["site-0"])[1]
    for number in (1, 2, 3):
        asked = ask(number, centroids, threshold)
        replies = {site: cluster.cluster(work, asked) for site, work in works.items()}
        totals = np.sum([reply.counts for reply in replies.values()], axis=0)
        sums = np.sum([reply.sums for reply in replies.values()], axis=0)
        last, centroids = centroids, loss_clusters.update_centroids(centroids, totals, sums)
    wanted = loss_clusters.fill_quotas(
        totals.tolist(), loss_clusters.samples_to_keep(totals.tolist(), 0.5)
    )
    counts = {site: reply.counts for site, reply in replies.items()}
    request = quotas(totals.tolist(), threshold, loss_clusters.extra_by_site(wanted, counts))
    return last, replies, request


def rows_of(work):
    """The site's own record of its selection."""
    return pq.read_table(work.folder / "selection.parquet").to_pylist()


@pytest.mark.parametrize("threshold", [float("-inf"), 0.5])
def test_clusters_of_silos_are_those_of_one_pool(tmp_path, threshold):
    """Oracle: centroids of messages over silos, one of them empty, against Lloyd on all samples."""
    works = federation(tmp_path, (37, 1, 52))
    works["site-9"] = silo(tmp_path / "9", np.zeros((0, 2)), np.zeros(0), site="site-9")
    last, replies, request = exchanged(works, threshold)
    pool = []
    for i, n in enumerate((37, 1, 52)):
        points, start = points_of(works[f"site-{i}"])
        pool.append(points[made_up(i, n)[1] >= threshold])
    points, expected = np.concatenate(pool), start
    for _ in range(2):
        places = loss_clusters.nearest_centroids(points, expected)
        means = [points[places == k].mean(axis=0) for k in range(len(start)) if (places == k).any()]
        held = np.flatnonzero(np.bincount(places, minlength=len(start)))
        expected = expected.copy()
        expected[held] = means
    assert np.abs(last - expected).max() <= 1e-6
    assert sum(request.totals) == len(points)
    assert replies["site-9"].counts == (0,) * len(start)


def test_clusters_selection_is_the_best_of_each_cluster(tmp_path):
    """Oracle over all silos: quotas sum to half; in each the highest scores, ties by id."""
    works = federation(tmp_path, (40, 25, 60))
    _, replies, request = exchanged(works, 0.25)
    kept = {}
    for site, work in works.items():
        assert select.select_samples(work, request).kept == {"curated": sum(
            row["kept"] for row in rows_of(work))}  # fmt: skip
        kept[site] = sum(row["kept"] for row in rows_of(work))
    assert sum(kept.values()) == loss_clusters.samples_to_keep(request.totals, 0.5)
    wanted = loss_clusters.fill_quotas(request.totals, sum(kept.values()))
    for i, (site, work) in enumerate(works.items()):
        scores = made_up(i, (40, 25, 60)[i])[1]
        places = pq.read_table(work.folder / "clusters-3.parquet")["cluster"].to_pylist()
        found = rows_of(work)
        for k, count in enumerate(replies[site].counts):
            inside = sorted(
                (-score, row["id"], row["kept"], row["reason"])
                for score, row, place in zip(scores, found, places, strict=True)
                if place == k
            )
            assert len(inside) == count
            number = sum(one[2] for one in inside)
            assert [one[2] for one in inside] == [True] * number + [False] * (count - number)
            share = wanted[k] * count / request.totals[k] if request.totals[k] else 0
            assert abs(number - share) < 1
            assert {one[3] for one in inside[number:]} <= {f"over the quota of cluster {k}"}
        for score, row in zip(scores, found, strict=True):
            assert (score < 0.25) == row["reason"].startswith("score ")


def test_clusters_leave_other_arms_as_they_are(tmp_path):
    """A random arm has as many as the quotas keep; keep_all knows no quota."""
    terms = terms_of()
    arms = replace(terms.study, arms=("curated", "keep_all", "random"))
    works = federation(tmp_path, (40,), terms=replace(terms, study=arms))
    kept = select.select_samples(works["site-0"], exchanged(works)[2]).kept
    assert kept == {"curated": 20, "keep_all": 40, "random": 20}


def test_clusters_sample_without_a_whole_trajectory_is_in_none(tmp_path):
    """A loss that is missing at one checkpoint: never told, never kept, and the reason stands."""
    losses, scores = made_up(0, 12)
    losses[3, 0] = np.nan
    works = {"site-0": silo(tmp_path, losses, scores, site="site-0")}
    _, replies, request = exchanged(works)
    assert sum(replies["site-0"].counts) == 11
    select.select_samples(works["site-0"], request)
    assert rows_of(works["site-0"])[3]["reason"] == "no whole loss trajectory"


@pytest.mark.parametrize(
    ("section", "policy", "least"),
    [
        ({}, None, 1),
        ({"smallest_cell": 7}, None, 7),
        ({"round_counts_to": 9}, None, 9),
        ({"smallest_cell": 7}, PolicySection(), 32),
        ({"smallest_cell": 40}, PolicySection(), 40),
    ],
)
def test_clusters_groups_are_as_large_as_every_clause_asks(tmp_path, section, policy, least):
    """Cell, rounding and, in a deployment, the smallest group: a sum is a mean loss that leaves."""
    losses, scores = made_up(1, 90)
    work = silo(tmp_path, losses, scores, policy=policy, **section)
    assert smallest_group(work) == least
    reply = cluster.cluster(work, ask(1, points_of(work)[1]))
    step = work.config.site.round_counts_to
    assert all(n == 0 or n >= least // step * step for n in reply.counts)
    assert all(n % step == 0 for n in reply.counts)
    assert 0 < sum(reply.counts) <= 90


def test_clusters_of_fewer_than_a_group_tell_nothing(tmp_path):
    """Below the smallest cell all is told as 0; the silo keeps the others' share of its own."""
    losses, scores = made_up(1, 6)
    work = silo(tmp_path, losses, scores, smallest_cell=7)
    start = points_of(work)[1]
    for number in (1, 2, 3):
        reply = cluster.cluster(work, ask(number, start))
        assert reply.counts == (0,) * len(start)
        assert not reply.sums.any()
    assert select.select_samples(work, quotas([100] * len(start))).kept == {"curated": 3}


def test_clusters_told_means_are_exact_under_rounding(tmp_path):
    """Counts are rounded down, each mean stays that of the whole cell."""
    losses, scores = made_up(2, 80)
    exact, rounded = (
        silo(tmp_path / str(step), losses, scores, round_counts_to=step, smallest_cell=10)
        for step in (1, 10)
    )
    start = points_of(exact)[1]
    one, other = (cluster.cluster(work, ask(1, start)) for work in (exact, rounded))
    assert [n // 10 * 10 for n in one.counts] == list(other.counts)
    for k, count in enumerate(other.counts):
        if count:
            assert np.allclose(other.sums[k] / count, one.sums[k] / one.counts[k], atol=1e-12)


def test_clusters_same_exchange_again_is_the_same_answer(tmp_path):
    """Also after later ones: groups that were told stay as they are, bit for bit."""
    losses, scores = made_up(3, 60)
    work = silo(tmp_path, losses, scores, smallest_cell=5)
    start = points_of(work)[1]
    asked = [ask(1, start), ask(2, start * 0.7), ask(3, start * 0.4)]
    first = [cluster.cluster(work, request) for request in asked]
    for request, reply in zip(asked, first, strict=True):
        again = cluster.cluster(work, request)
        assert again.counts == reply.counts
        assert np.array_equal(again.sums, reply.sums)


def test_clusters_refuse_what_is_not_this_runs_next_step(tmp_path):
    """Another start, shape, threshold or content; nothing is written for it."""
    losses, scores = made_up(4, 30)
    work = silo(tmp_path, losses, scores)
    start = points_of(work)[1]
    near = start + 1e-9
    with pytest.raises(RefusalError, match="follow from the agreed public rows"):
        cluster.cluster(work, ask(1, start + 1e-3))
    with pytest.raises(RefusalError, match="centroids have shape"):
        cluster.cluster(work, ask(1, start[:2]))
    with pytest.raises(RefusalError, match="not on the grid"):
        cluster.cluster(work, ask(1, start, 0.123456))
    assert not list(tmp_path.glob("clusters-*"))
    cluster.cluster(work, ask(1, near, 0.5))
    with pytest.raises(RefusalError, match="asked before with other centroids"):
        cluster.cluster(work, ask(1, start, 0.5))
    for threshold in (0.25, float("-inf")):
        with pytest.raises(RefusalError, match=r"were told for 0\.5"):
            cluster.cluster(work, ask(2, start, threshold))
    with pytest.raises(RefusalError, match=r"were told for 0\.5"):
        cluster.cluster(work, ask(2, start, 0.5, north=0.25))
    assert [file.name for file in tmp_path.glob("clusters-*")] == ["clusters-1.parquet"]


def test_clusters_selection_refuses_what_fits_no_exchange(tmp_path):
    """No last exchange, another threshold, totals or clusters that are none of this run."""
    losses, scores = made_up(5, 30)
    work = silo(tmp_path, losses, scores)
    start = points_of(work)[1]
    number = len(start)
    with pytest.raises(ProtocolError, match="exchange 3 of clusters has not run"):
        select.select_samples(work, quotas([30] * number))
    for exchange in (1, 2, 3):
        cluster.cluster(work, ask(exchange, start))
    with pytest.raises(RefusalError, match="were told for -inf"):
        select.select_samples(work, quotas([30] * number, 0.5))
    for totals, extra in (
        ([30], {}),
        ([-1] * number, {}),
        ([30] * number, {"north": (number,)}),
        ([30] * number, {"north": (-1,)}),
    ):
        with pytest.raises(ProtocolError, match="this site knows"):
            select.select_samples(work, quotas(totals, extra=extra))
    assert not (tmp_path / "selection.parquet").exists()


def test_clusters_before_the_score_are_a_protocol_error(tmp_path):
    """Edge: an exchange out of order names what has not run."""
    losses, scores = made_up(6, 5)
    work = silo(tmp_path, losses, scores)
    start = points_of(work)[1]
    (tmp_path / "scores.parquet").unlink()
    with pytest.raises(ProtocolError, match="has not run at this site"):
        cluster.cluster(work, ask(1, start))
