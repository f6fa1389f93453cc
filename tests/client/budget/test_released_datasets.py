"""The store of released data sets: durable, without an id in it, and able to read its ancestors."""

from types import SimpleNamespace

import numpy as np
import pytest
from policy_silo import Samples, head, metrics, refused, score, summary, train

from fedwinnow.client.budget import released_datasets
from fedwinnow.client.budget.ledger import Entry
from fedwinnow.client.budget.released_datasets import HELD, ReleasedDatasets, dataset_name
from fedwinnow.client.data.site_data import holdout_share
from fedwinnow.curation.datatypes import Metrics
from fedwinnow.curation.errors import OutputError
from fedwinnow.curation.protocol import wire


def run_of(ids, held=()):
    return SimpleNamespace(data=SimpleNamespace(samples=Samples(ids), own_holdout=Samples(held)))


def test_store_reads_back_what_was_stored_and_holds_no_id(tmp_path):
    """Equivalence: a new process knows the same atoms; another site's salt gives other hashes."""
    store = ReleasedDatasets(folder=tmp_path / "a")
    run = run_of(range(30), range(30, 40))
    atoms = store.atoms(run)
    assert not store.file.exists()
    store.store(run)
    again = ReleasedDatasets(folder=tmp_path / "a")
    found = again.atoms(run)
    for name in ("hashes", "atoms", "members"):
        np.testing.assert_array_equal(getattr(found, name), getattr(atoms, name))
    assert (
        found.names == atoms.names == (again.identify(run).samples, again.identify(run).own_holdout)
    )
    assert sorted(found.sizes) == [10, 30]
    assert b"sample-" not in store.file.read_bytes()
    assert store.file.stat().st_mode & 0o077 == 0
    other = ReleasedDatasets(folder=tmp_path / "b").atoms(run)
    assert not set(other.hashes) & set(found.hashes)


def test_store_is_whole_after_a_crash_in_its_writing(tmp_path, monkeypatch):
    """Edge: a full disk leaves the store as it was, and the data set unnamed in the ledger."""
    store = ReleasedDatasets(folder=tmp_path)
    store.store(run_of(range(30)))
    before = store.file.read_bytes()

    def full(*_):
        message = "no space"
        raise OutputError(message)

    with monkeypatch.context() as patch:
        patch.setattr(released_datasets, "write_private", full)
        with pytest.raises(OutputError):
            store.store(run_of(range(50)))
    assert store.file.read_bytes() == before
    store.store(run_of(range(50)))
    assert len(ReleasedDatasets(folder=tmp_path).atoms(run_of(range(50))).names) == 2


def test_store_that_cannot_be_read_is_refused_by_name(tmp_path):
    """Edge: a cut file is an error with its path and the cure, never an empty store."""
    store = ReleasedDatasets(folder=tmp_path)
    store.store(run_of(range(30)))
    store.file.write_bytes(store.file.read_bytes()[:100])
    with pytest.raises(OutputError, match=r"samples\.npz.*restore it from a backup"):
        ReleasedDatasets(folder=tmp_path).atoms(run_of(range(30)))


def test_store_of_before_is_converted_with_its_division(silo):
    """What a version before wrote binds still: budgets of its samples, and its own hold-out."""
    one = silo(summaries=2, min_change=5)
    ids, folder = Samples(range(60)).ids, one.folder / "datasets"
    name = dataset_name(ids)
    folder.mkdir()
    (folder / f"{name}.ids").write_text("\n".join(sorted(ids)))
    (folder / f"{name}.division").write_text("share 0.25, seed 7")
    (folder / "broken.ids").write_text("nonsense")
    for reply in (summary(), metrics(head("evaluate"))):
        left = Entry.of(reply, wire.encode(reply), request=f"old {reply.header.phase}",
                        recipient="f", data=name, anchors="a")  # fmt: skip
        one.ledger.append(left)
    held = [i for i in range(60) if holdout_share(7, f"sample-{i}") < 0.25]
    rest = [i for i in range(60) if i not in held]
    assert 8 <= len(held) < 30
    work = one.work("b", ids=rest, held=held)
    one.give(score("b"), summary("b"), work)
    assert name + HELD in one.policy.known.atoms(work).names
    assert sorted(file.name for file in folder.iterdir()) == ["broken.ids", "samples.npz"]
    one.enact(summaries=2, min_change=5)
    refused("policy.summaries", one.ask, score("c"), one.work("c", ids=rest, held=held))
    one.enact(summaries=9, min_change=5)
    fewer = one.work("d", ids=[*rest, held[0]], held=held[1:])
    refused("policy.min_change", one.ask, train(run="d"), fewer)
    request = metrics(head("evaluate", run="d"), len(held) - 1)
    assert one.policy.release(request, fewer, one.ledger).own == Metrics()
