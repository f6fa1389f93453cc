"""Laws of measuring in shards: chunked = whole, and a kill costs one shard."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from same_table import same

from fedwinnow.client.runs.run_files import RunFiles
from fedwinnow.client.signals.shards import measure_in_shards, remove_shards
from fedwinnow.curation.datatypes import Sample, SignalTable


def samples_of(number: int) -> list[Sample]:
    """Samples that differ."""
    return [
        Sample(id=f"{i:04d}", prompt=f"p{i}", response="r" * (i % 7 + 1), domain=f"d{i % 2}")
        for i in range(number)
    ]


class Meter:
    """Measures by a formula of each sample alone, and remembers how many it was asked for."""

    def __init__(self, dies_at: int = -1) -> None:
        self.asked: list[int] = []
        self.dies_at = dies_at

    def __call__(self, samples, told) -> SignalTable:
        """The table of the formula."""
        if len(self.asked) == self.dies_at:
            raise KeyboardInterrupt
        self.asked.append(len(samples))
        lengths = np.array([len(one.response) for one in samples], dtype=np.float32)
        if told is not None:
            told(1, 2)
            told(2, 2)
        return SignalTable(
            ids=tuple(one.id for one in samples),
            domains=tuple(one.domain for one in samples),
            checkpoint=2,
            status=(lengths == 3).astype(np.int8),
            columns={
                "loss": np.where(lengths == 3, np.nan, lengths).astype(np.float32),
                "dot": np.stack([lengths, -lengths], axis=1),
            },
            references=("d0", "d1"),
            reference_gram=np.eye(2),
            learning_rate=0.5,
        )


@given(number=st.integers(0, 40), size=st.integers(1, 12))
def test_shards_give_the_table_of_the_whole(tmp_path_factory, number, size):
    """In shards of any size = in one go, and progress never falls and ends at all samples."""
    samples, seen = samples_of(number), list[tuple[int, int]]()
    folder = tmp_path_factory.mktemp("shards")
    got = measure_in_shards(
        Meter(),
        samples,
        files=RunFiles(folder),
        key=("a",),
        size=size,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    same(got, Meter()(samples, None))
    if number > size:
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert seen[-1] == (number, number)
        assert {total for _, total in seen} == {number}


def backwards(shards):
    """Workers that finish the last shard first."""
    for index, shard in reversed(list(shards)):
        yield index, Meter()(shard, None)


@pytest.mark.parametrize("number", [0, 1, 5, 12])
def test_workers_give_the_same_table_in_any_order(tmp_path: Path, number: int):
    """Shards that end in another order, by other hands: the table of the whole."""
    samples = samples_of(number)
    got = measure_in_shards(
        Meter(), samples, files=RunFiles(tmp_path), key=("a",), size=5, workers=backwards
    )
    same(got, Meter()(samples, None))


def test_kill_costs_one_shard(tmp_path: Path):
    """After a kill in the third shard the first two are read, and the table is the whole's."""
    samples = samples_of(23)
    dying = Meter(dies_at=2)
    with pytest.raises(KeyboardInterrupt):
        measure_in_shards(dying, samples, files=RunFiles(tmp_path), key=("a",), size=5)
    assert dying.asked == [5, 5]
    going_on = Meter()
    got = measure_in_shards(going_on, samples, files=RunFiles(tmp_path), key=("a",), size=5)
    assert going_on.asked == [5, 5, 3]
    same(got, Meter()(samples, None))


def test_shards_of_other_samples_or_another_pass_are_not_taken(tmp_path: Path):
    """Another key, or other samples under the same key, are measured anew."""
    samples = samples_of(12)
    measure_in_shards(Meter(), samples, files=RunFiles(tmp_path), key=("a",), size=5)
    other = Meter()
    measure_in_shards(other, samples, files=RunFiles(tmp_path), key=("a", "b"), size=5)
    assert other.asked == [5, 5, 2]
    moved, fresh = [*samples[:5], *samples[6:], samples[5]], Meter()
    got = measure_in_shards(fresh, moved, files=RunFiles(tmp_path), key=("a",), size=5)
    assert fresh.asked == [5, 2]
    same(got, Meter()(moved, None))


def test_nothing_stays_of_a_pass_that_is_done(tmp_path: Path):
    """A short pass writes nothing, and what a long one wrote can be forgotten, twice too."""
    measure_in_shards(Meter(), samples_of(5), files=RunFiles(tmp_path), key=("a",), size=5)
    assert not RunFiles(tmp_path).shards.exists()
    measure_in_shards(Meter(), samples_of(6), files=RunFiles(tmp_path), key=("a",), size=5)
    assert len(list(RunFiles(tmp_path).shards.iterdir())) == 2
    remove_shards(RunFiles(tmp_path))
    remove_shards(RunFiles(tmp_path))
    assert not RunFiles(tmp_path).shards.exists()
