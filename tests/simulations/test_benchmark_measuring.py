"""Laws of the benchmark of measuring: it runs, and its figures are what they are called."""

import numpy as np

from fedwinnow.simulations.benchmarks import measuring
from fedwinnow.simulations.tiny import write_tiny_model


def test_benchmark_gives_a_ratio_with_its_interval(monkeypatch):
    """Two short pairs give every figure; the median lies in its interval."""
    monkeypatch.setattr(measuring, "write_model", write_tiny_model)
    found = measuring.bench_scoring(2, length=32, batch=2, batches=1, memory=False)
    assert found["pairs"] == 2
    assert found["ratio_low"] <= found["ratio"] <= found["ratio_high"]
    assert found["step_seconds"] > 0
    assert found["score_seconds"] > 0


def test_benchmark_ratio_is_the_median_of_pairs():
    """A side twice as slow in every pair gives 2, without an interval."""
    times = np.array([[1.0, 2.0], [3.0, 6.0], [0.5, 1.0]])
    found = measuring._ratio(times)
    assert (found["ratio"], found["ratio_low"], found["ratio_high"]) == (2.0, 2.0, 2.0)


def test_benchmark_memory_is_that_of_this_process():
    """The status figures are bytes: the peak is no less than what is held."""
    assert measuring._status("VmHWM") >= measuring._status("VmRSS") > 10_000_000
