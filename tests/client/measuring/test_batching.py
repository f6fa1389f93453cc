"""Laws of batches: whatever memory does, each sample is in one finished batch, and nothing else."""

import logging
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.client.measuring import batching, memory
from fedwinnow.client.measuring.batching import Prefetcher, run_in_batches
from fedwinnow.client.measuring.length_buckets import plan_batches
from fedwinnow.client.measuring.memory import available_bytes, out_of_memory, token_bytes
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.model.lora_model import BatchBudget, LoadedModel
from fedwinnow.curation.model.token_losses import collate, sample_losses
from fedwinnow.curation.tokens.tokenization import Encoding

CPU_WORDS = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError(f"[enforce fail at alloc_cpu.cpp:118] err == 0. {CPU_WORDS}"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError("Unable to allocate 8 bytes"),
)
LENGTHS = st.lists(st.integers(2, 30), max_size=30)


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Collecting garbage takes a second in a process of tests, and hypothesis fails often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "release_memory", lambda: None)
        yield


def encoded(lengths):
    """Encodings of so many tokens; the first token is the sample's number."""
    return [
        Encoding(
            tokens=np.array([i, *[1] * (size - 1)], dtype=np.int32), response_start=1, body_end=size
        )
        for i, size in enumerate(lengths)
    ]


def bare():
    """A model of which only device and sizes are there."""
    device = torch.device("cpu")
    return LoadedModel(model=torch.nn.Module(), tokenizer=None, fingerprint="f", device=device)


class Passing:
    """A pass that memory bears up to so many tokens a batch."""

    def __init__(self, bears, error=ERRORS[0]) -> None:
        self.bears, self.error = bears, error
        self.tried, self.done, self.forgotten = [], [], 0

    def run(self, places, batch):
        """Run a batch, or fail."""
        self.tried.append(batch.tokens.numel())
        assert batch.tokens[:, 0].tolist() == places.tolist()
        if batch.tokens.numel() > self.bears:
            raise self.error
        self.done.append(places.tolist())

    def forget(self):
        """Count a call."""
        self.forgotten += 1

    @property
    def rows(self):
        """Rows of all finished batches."""
        return sorted(row for places in self.done for row in places)


@given(lengths=LENGTHS, budget=st.integers(8, 200))
def test_batches_are_the_plan_where_memory_bears_it(lengths, budget):
    """Without a failure the batches are those of plan_batches, in their order."""
    loaded, found = bare(), Passing(10**9)
    run_in_batches(loaded, encoded(lengths), found.run, batch_tokens=budget, kind="loss")
    plan = plan_batches(np.array(lengths, dtype=np.int64), budget)
    assert found.done == [places.tolist() for places in plan]
    assert found.forgotten == 0


@given(
    lengths=LENGTHS,
    budget=st.integers(8, 400),
    bears=st.integers(30, 400),
    error=st.sampled_from(ERRORS),
)
def test_batches_lose_and_repeat_no_row_when_memory_runs_out(lengths, budget, bears, error):
    """Every row is in one finished batch, each failure is forgotten once, batches only shrink."""
    loaded, found = bare(), Passing(bears, error)
    run_in_batches(
        loaded, encoded(lengths), found.run, forget=found.forget, batch_tokens=budget, kind="loss"
    )
    assert found.rows == list(range(len(lengths)))
    failures = [size for size in found.tried if size > bears]
    assert found.forgotten == len(failures)
    for one, other in pairwise(failures):
        assert other <= one // 2
    if failures:
        assert loaded.sizes["loss"].most == failures[-1] // 2


@given(lengths=LENGTHS, budget=st.integers(8, 400), bears=st.integers(30, 400))
def test_batches_that_add_up_count_each_row_once(lengths, budget, bears):
    """A pass that sums over batches and forgets all on a failure ends with every row once."""
    total = np.zeros(len(lengths), dtype=int)

    def run(places, batch):
        total[places] += 1  # before it fails, as a backward pass does
        if batch.tokens.numel() > bears:
            raise ERRORS[0]

    def forget():
        total[:] = 0

    run_in_batches(
        bare(), encoded(lengths), run, forget=forget, adds_up=True, batch_tokens=budget, kind="x"
    )
    assert (total == 1).all()


def test_batches_halve_and_remember(caplog):
    """64 tokens fail, 32 fail, 16 pass: two warnings, and the next pass begins with 16."""
    loaded, found = bare(), Passing(16)
    with caplog.at_level(logging.WARNING):
        run_in_batches(loaded, encoded([4] * 16), found.run, batch_tokens=64, kind="loss")
    assert found.tried == [64, 32, 16, 16, 16, 16]
    assert [r.args[1:] for r in caplog.records] == [(64, 32), (32, 16)]
    again = Passing(16)
    with caplog.at_level(logging.WARNING):
        run_in_batches(loaded, encoded([4] * 8), again.run, batch_tokens=64, kind="loss")
    assert again.tried == [16, 16]
    assert len(caplog.records) == 2
    other = Passing(64)
    run_in_batches(loaded, encoded([4] * 16), other.run, batch_tokens=64, kind="hooks")
    assert other.tried == [64]  # a pass of another kind holds another amount


@pytest.mark.parametrize("error", ERRORS)
def test_batches_name_the_sample_that_does_not_fit(error):
    """One sample alone is refused with its length and the setting to change."""
    found = Passing(20, error)
    with pytest.raises(ModelError, match=r"one sample of 24 tokens.*model\.max_length below 24"):
        run_in_batches(bare(), encoded([4, 24, 4]), found.run, batch_tokens=64, kind="loss")


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes"), ValueError("DefaultCPU")])
def test_batches_let_every_other_error_through(error):
    """Errors that are not of memory are raised as they are, at the first batch."""
    found = Passing(1, error)
    with pytest.raises(type(error)) as raised:
        run_in_batches(bare(), encoded([4] * 4), found.run, batch_tokens=64, kind="loss")
    assert raised.value is error
    assert len(found.tried) == 1
    assert not out_of_memory(error)


class Device:
    """A device of so many bytes on which each token of a batch takes so many."""

    def __init__(self, size, each) -> None:
        self.size, self.each = size, each
        self.peak = 0

    def begin(self):
        """As CudaGauge."""
        self.peak = 0

    def used(self):
        """As CudaGauge."""
        return self.peak

    def free(self):
        """As CudaGauge."""
        return self.size

    def run(self, found):
        """Run batches of ``found`` on this device."""

        def one(places, batch):
            self.peak = batch.tokens.numel() * self.each
            if self.peak > self.size:
                raise ERRORS[0]
            found.run(places, batch)

        return one


@given(
    lengths=st.lists(st.integers(2, 400), min_size=1, max_size=60),
    size=st.integers(2048 * 8, 10**6),
    each=st.integers(1, 8),
)
def test_batches_that_find_their_size_stay_within_the_share(lengths, size, each):
    """From 2048 tokens on, no batch takes more than its share; every row is there once."""
    device, found, loaded = Device(size, each), Passing(10**9), bare()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "CudaGauge", lambda _device: device)
        patch.setattr(batching, "_gauged", lambda _device: True)
        run_in_batches(loaded, encoded(lengths), device.run(found), batch_tokens=0, kind="loss")
    assert found.rows == list(range(len(lengths)))
    assert not loaded.sizes["loss"].most
    grown = [tokens for tokens in found.tried if tokens > batching.BEGIN]
    assert all(tokens * each <= batching.SHARE * size for tokens in grown)


def test_batches_grow_by_doubling_up_to_what_memory_bears(monkeypatch):
    """2048, 4096, … to 80 % of the device by 256; the next pass begins there; a failure ends it."""
    device, loaded = Device(80_000, 4), bare()
    monkeypatch.setattr(batching, "CudaGauge", lambda _device: device)
    monkeypatch.setattr(batching, "_gauged", lambda _device: True)
    monkeypatch.setattr(batching, "MOST_GPU", 20_000)
    some, found = encoded([32] * 2000), Passing(10**9)
    run_in_batches(loaded, some, device.run(found), batch_tokens=0, kind="loss")
    assert found.tried[:4] == [2048, 4096, 8192, 15_872]
    assert set(found.tried[3:-1]) == {15_872}
    again = Passing(10**9)
    run_in_batches(loaded, some[:600], device.run(again), batch_tokens=0, kind="loss")
    assert again.tried == [15_872, 3328]
    device.size, last = 40_000, Passing(10**9)  # another process takes half of the device
    run_in_batches(loaded, some, device.run(last), batch_tokens=0, kind="loss")
    assert loaded.sizes["loss"].most == 7936
    assert max(last.tried) == 7936
    assert last.rows == list(range(2000))


def test_batches_on_a_cpu_keep_to_what_is_available(monkeypatch):
    """Half of the available memory by the estimate, and never more than a CPU gains from."""
    loaded = bare()
    loaded.model = torch.nn.Linear(4, 100)
    each = token_bytes(loaded.model, graph=False)
    for there, expected in ((each * 201, 100), (10**15, batching.MOST_CPU), (0, 8), (None, 2048)):
        loaded.sizes.clear()
        monkeypatch.setattr(batching, "available_bytes", lambda there=there: there)
        found = Passing(10**9)
        run_in_batches(loaded, encoded([4] * 600), found.run, batch_tokens=0, kind="loss")
        assert max(found.tried) == expected


def test_memory_that_a_token_takes_is_no_less_than_autograd_keeps(tiny_model):
    """The estimate covers what a forward pass keeps for its backward pass, and not ten times it."""
    encodings = encoded([40] * 8)
    batch, kept = collate(encodings), dict[int, int]()
    frozen = {parameter.data_ptr() for parameter in tiny_model.model.parameters()}

    def pack(tensor):
        store = tensor.untyped_storage()
        if store.data_ptr() not in frozen:
            kept[store.data_ptr()] = store.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = sample_losses(tiny_model.model, batch)
    assert losses.requires_grad
    each = sum(kept.values()) / batch.tokens.numel()
    assert each <= token_bytes(tiny_model.model, graph=True) <= 10 * each
    assert token_bytes(tiny_model.model, graph=False) < token_bytes(tiny_model.model, graph=True)


def test_memory_available_is_the_least_of_system_and_container(tmp_path, monkeypatch):
    """What the system says in bytes, or what the control group leaves; a missing limit is none."""
    group = tmp_path / "group"
    found = available_bytes(group)
    assert found is not None
    assert 0 < found < psutil.virtual_memory().total
    there = SimpleNamespace(available=4096 * 1024)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: there)
    assert available_bytes(group) == 4096 * 1024
    group.mkdir()
    (group / "memory.current").write_text("1000\n")
    (group / "memory.max").write_text("max\n")
    assert available_bytes(group) == 4096 * 1024
    (group / "memory.max").write_text("51000\n")
    assert available_bytes(group) == 50_000
    (group / "memory.max").write_text("900\n")
    assert available_bytes(group) == 0

    def refuse():
        raise FileNotFoundError

    monkeypatch.setattr(memory.psutil, "virtual_memory", refuse)
    assert available_bytes(group) == 0
    assert available_bytes(tmp_path / "none") is None


@given(lengths=LENGTHS, budget=st.integers(8, 200))
def test_batches_made_ahead_are_the_same(lengths, budget):
    """With a thread that makes the next batch, each batch holds what it holds without."""
    some = encoded(lengths)
    plan = plan_batches(np.array(lengths, dtype=np.int64), budget)
    with ThreadPoolExecutor(1) as pool:
        coming = Prefetcher(some, pool)
        for place, places in enumerate(plan):
            after = plan[place + 1] if place + 1 < len(plan) else places[:0]
            if place % 3 == 2:  # what was made ahead is not what is asked for after a failure
                after = after[: len(after) // 2]
            found, expected = coming.batch_at(places, after), collate([some[i] for i in places])
            assert torch.equal(found.tokens, expected.tokens)
            assert torch.equal(found.mask, expected.mask)
            assert torch.equal(found.targets, expected.targets)
            assert found.first == expected.first


def test_batches_made_ahead_that_fail_are_failures_of_their_batch(monkeypatch):
    """An error of the thread is raised where its batch is asked for."""

    def failing(some):
        if len(some) == 2:
            raise ERRORS[3]
        return collate(some)

    monkeypatch.setattr(batching, "collate", failing)
    with ThreadPoolExecutor(1) as pool:
        coming = Prefetcher(encoded([4] * 3), pool)
        assert coming.batch_at(np.array([0]), np.array([1, 2])).tokens.shape == (1, 4)
        with pytest.raises(MemoryError):
            coming.batch_at(np.array([1, 2]), np.array([], dtype=np.int64))


def test_sizes_of_an_untouched_model_are_unset(tiny_model):
    """A model that was just loaded remembers nothing."""
    assert tiny_model.sizes == {}
    assert BatchBudget() == BatchBudget(most=0, grown=0)
