"""Laws of a whole federation with clusters: messages are pooled k-means, and a run goes on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fedwinnow.client.runs import tables
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.curation.config.identity import run_id
from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.curation.protocol import messages, wire
from fedwinnow.curation.scores import loss_clusters
from fedwinnow.server.report import final_files
from fedwinnow.server.run.fold import next_request
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.state import RunState
from fedwinnow.simulations.datasets.toy_federation import SITES, write_toy_scenario
from fedwinnow.simulations.runtimes.in_process import simulate

SETTINGS = (
    "clusters.count=3",
    "clusters.iterations=3",
    "clusters.budget=0.5",
    "threshold.settings.share=0.9",
    "training.rounds=0",
    "scorer.name=tracin",
)


@pytest.fixture(scope="module")
def cache() -> ProcessCache:
    """One warm model for the module."""
    return ProcessCache()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A toy federation of three silos of ten samples."""
    path = write_toy_scenario(tmp_path_factory.mktemp("toy"), samples=10)
    return load_scenario(path, SETTINGS)


@pytest.fixture(scope="module")
def finished(config, cache):
    """A finished run, and every state that it committed."""
    states, commit = [], RunFolder.commit

    def committing(store, state):
        states.append(wire.dump(state))
        commit(store, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "commit", committing)
        folder = simulate(config, cache=cache)
    return folder, states


@pytest.fixture
def no_report(monkeypatch):
    """Runs inside a test draw no page; ``finished`` draws a real one."""
    monkeypatch.setattr(
        final_files, "write_report", lambda record, path: path.write_text(record.run)
    )


def of_site(folder: Path, config, site: str) -> Path:
    """The folder of a site's own tables."""
    return folder / "sites" / site / run_id(config)


def result(folder: Path, config) -> list[object]:
    """What must repeat bit for bit: clusters and selections, from which all else follows."""
    state = RunFolder(folder=folder).load()
    rows = [
        pq.read_table(of_site(folder, config, site) / f"{name}.parquet").to_pylist()
        for site in SITES
        for name in ("clusters-1", "clusters-3", "selection")
    ]
    return [wire.dump(state.clusters), rows]


def test_clusters_of_a_run_are_those_of_one_pool(config, finished):
    """Oracle: the last centroids are two steps of Lloyd from the start, over all that passes."""
    folder, _ = finished
    state = RunFolder(folder=folder).load()
    pool = []
    for site in SITES:
        work = of_site(folder, config, site)
        points, start = tables.read_trajectories(work / "trajectories.parquet")
        _, _, scores = tables.read_scores(work / "scores.parquet", "tracin")
        pool.append(points[scores >= state.decision.value])
    points, expected = np.concatenate(pool), start
    for _ in range(2):
        counts, sums = loss_clusters.cluster_sums(
            points, loss_clusters.nearest_centroids(points, expected), 3
        )
        expected = loss_clusters.update_centroids(expected, counts, sums)
    assert np.abs(state.clusters.centroids - expected).max() <= 1e-6
    counts, _ = loss_clusters.cluster_sums(
        points, loss_clusters.nearest_centroids(points, expected), 3
    )
    assert list(state.clusters.totals) == counts.tolist()


def test_clusters_of_a_run_fill_the_budget(config, finished):
    """Half of what passes is kept, by quota in each cluster; the reasons stand at the sites."""
    folder, _ = finished
    state = RunFolder(folder=folder).load()
    kept, reasons = np.zeros(3, dtype=int), set()
    for site in SITES:
        work = of_site(folder, config, site)
        rows = pq.read_table(work / "selection.parquet").to_pylist()
        places, _ = tables.read_clusters(work / "clusters-3.parquet")
        kept += np.bincount(places[[row["kept"] for row in rows]], minlength=3)
        assert state.kept["curated"][site] == sum(row["kept"] for row in rows)
        reasons |= {row["reason"] for row, place in zip(rows, places, strict=True) if place >= 0}
    assert tuple(kept.tolist()) == state.clusters.quotas
    assert kept.sum() == loss_clusters.samples_to_keep(state.clusters.totals, 0.5)
    assert all(reason == "" or reason.startswith("over the quota of cluster") for reason in reasons)


def test_clusters_of_a_run_stand_in_record_and_report(finished):
    """Count and quota of each cluster; a run without them has no such key."""
    folder, _ = finished
    record = json.loads((folder / "record.json").read_text())
    assert sum(record["clusters"]["quotas"]) == sum(site["kept"] for site in record["sites"])
    assert 'id="clusters"' in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("number", "lost"), [(1, ""), (2, ""), (2, "replies"), (3, ""), (4, ""), (4, "replies")]
)
@pytest.mark.usefixtures("no_report")
def test_clusters_resume_from_every_exchange(config, finished, tmp_path, cache, number, lost):
    """Killed before an exchange or the selection, replies lost or not: the same bits at the end."""
    folder, states = finished
    held = [wire.restore(data, RunState) for data in states]
    places = [("cluster", 1), ("cluster", 2), ("cluster", 3), ("select", 0)]
    (state,) = [s for s in held if (s.phase, s.round) == places[number - 1]]
    moved = replace(config, run=replace(config.run, output=str(tmp_path)))
    shutil.copytree(folder, tmp_path / "toy", ignore=shutil.ignore_patterns(lost))
    text = state.config.replace(json.dumps(config.run.output), json.dumps(moved.run.output))
    RunFolder(folder=tmp_path / "toy").commit(replace(state, config=text))
    assert isinstance(
        next_request(state), messages.QuotaRequest if number == 4 else messages.ClusterRequest
    )
    assert simulate(moved, resume=True, cache=cache) == tmp_path / "toy"
    assert result(tmp_path / "toy", config) == result(folder, config)


@pytest.mark.usefixtures("no_report")
def test_clusters_off_ask_nothing_and_write_nothing(config, tmp_path, cache):
    """With count = 0 no phase, no file, no key in the record: as if there were none."""
    section = replace(config.clusters, count=0)
    plain = replace(config, clusters=section, run=replace(config.run, output=str(tmp_path)))
    folder = simulate(plain, cache=cache)
    state = RunFolder(folder=folder).load()
    assert state.clusters is None
    assert "cluster" not in {record.phase for record in state.records}
    assert "clusters" not in json.loads((folder / "record.json").read_text())
    files = {path.name for path in folder.rglob("*.parquet")}
    assert not {name for name in files if name.startswith(("clusters", "trajectories"))}
