"""Laws of the benchmark of scoring: all rows compute the same, and figures are what they say."""

import importlib.util
import json
import logging
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedwinnow.cli import bench as cli_bench
from fedwinnow.client.training import sample_stream
from fedwinnow.curation.errors import ConfigError
from fedwinnow.simulations.benchmarks import gradient_methods, peers, scoring, shapes, workload
from fedwinnow.simulations.benchmarks.instruments import process_memory, timing
from fedwinnow.simulations.benchmarks.scoring import Plan, bench_scoring

pytestmark = pytest.mark.flower  # long: with `make flower`, not with the default run

SMALL = shapes.Shape(
    hidden=32, layers=2, intermediate=64, heads=4, kv_heads=2, vocabulary=0, tied=False
)
PLAN = Plan(model="tiny", data="ragged", samples=5, batch_tokens=256)
FIGURES = {
    "status", "seconds", "ratio", "ratio_low", "ratio_high", "tokens_per_second", "teraflops",
    "apart", "kept_bytes", "peak_bytes", "peak_ratio",
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> workload.Bench:
    """Five ragged samples on a model of two layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(workload.SHAPES, "tiny", SMALL)
        folder = workload.write_model(tmp_path_factory.mktemp("model"), "tiny")
    lengths = workload.draw_lengths("ragged", 5)
    return workload.prepare(folder, lengths, batch_tokens=256)


@pytest.fixture(scope="module")
def found() -> dict:
    """A whole table of the small model, peak memory left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(workload.SHAPES, "tiny", SMALL)
        return bench_scoring(PLAN, 2, memory=False)


@pytest.mark.parametrize("name", ["probe", "forward", "piggyback", "loop", "vmap", *peers.PEERS])
def test_benchmark_rows_compute_what_measuring_computes(bench, name):
    """Every row's scores are ours, finite differences to 0.1 %: the work that is timed is equal."""
    if name in peers.PEERS and peers.absent(name):
        pytest.skip(f"{name} is {peers.absent(name)}")
    given = {**gradient_methods.ROWS, **peers.PEERS}[name](bench)
    most = 1e-3 if name == "forward" else 1e-4  # fp32, sums over all weights at once
    assert scoring._apart(given, gradient_methods.measure_by_hooks(bench)) < most
    assert given.dots.shape == (5, workload.REFERENCES)


def test_benchmark_kept_bytes_are_those_of_the_arrays(bench):
    """The loop keeps a gradient of every weight, ours four bytes a number: counted, not assumed."""
    weights = sum(weight.numel() for weight in gradient_methods.factors(bench).values())
    assert gradient_methods.one_by_one(bench).kept == 5 * 4 * weights
    ours = gradient_methods.measure_by_hooks(bench)
    assert ours.kept == ours.dots.nbytes + ours.norms.nbytes + 5  # and a status
    assert ours.kept / 5 <= 100  # the bar of the design
    assert gradient_methods.train_plain(bench).kept == 0


def test_benchmark_rows_leave_the_model_as_it_was(bench):
    """After any row the adapter's weights are the same and hold no gradient."""
    before = [weight.detach().clone() for weight in gradient_methods.factors(bench).values()]
    for row in gradient_methods.ROWS.values():
        row(bench)
        for old, weight in zip(before, gradient_methods.factors(bench).values(), strict=True):
            assert torch.equal(old, weight)
            assert weight.grad is None
            assert weight.requires_grad


def test_benchmark_piggyback_is_the_training_of_its_baseline(bench):
    """Both rounds see every sample exactly once, in the same batches; only one tells of them."""
    seen: dict[str, list[tuple[int, ...]]] = {}
    for name in ("train", "piggyback"):
        places = seen.setdefault(name, [])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sample_stream, "collate", _noting(places, sample_stream.collate))
            told = gradient_methods.ROWS[name](bench)
        assert (told.dots is not None) == (name == "piggyback")
    assert seen["train"] == seen["piggyback"]
    assert sum(len(lengths) for lengths in seen["train"]) == 5


def _noting(places, collate):
    def noted(encodings):
        places.append(tuple(len(one.tokens) for one in encodings))
        return collate(encodings)

    return noted


def test_benchmark_last_half_is_half_of_the_layers(bench):
    """Its references are those of the second of two layers, and its scores are not all of ours."""
    assert {name.split(".")[2] for name in bench.last_half.means} == {"1"}
    assert len(bench.last_half.means) * 2 == len(bench.references.means)
    assert (
        scoring._apart(
            gradient_methods.measure_last_half(bench), gradient_methods.measure_by_hooks(bench)
        )
        > 0.01
    )


def test_benchmark_rows_can_be_chosen(bench):
    """What is compared with comes along: the baseline and ours, and training for piggyback."""
    chosen, statuses = scoring._rows(bench, peers=True, only=["piggyback"])
    assert list(chosen) == ["plain", "measure", "train", "piggyback"]
    assert statuses == {}


def test_benchmark_result_is_complete(found):
    """Every row has every figure, or says why it has none; JSON can hold it."""
    measured = {name for name, row in found["rows"].items() if row["status"] == "ok"}
    assert {*gradient_methods.ROWS, scoring.IDEAL} <= measured
    assert set(found["rows"]) == {*gradient_methods.ROWS, *peers.PEERS, scoring.IDEAL}
    for name in measured:
        assert set(found["rows"][name]) == FIGURES
    for name in set(found["rows"]) - measured:
        assert "not installed" in found["rows"][name]["status"]
    assert json.loads(json.dumps(found)) == found
    assert found["tokens"] == workload.draw_lengths("ragged", 5).sum()
    assert found["padded_tokens"] >= found["tokens"]


def test_benchmark_ratios_are_of_the_same_run(found):
    """The plain step is 1 in itself, and every median lies in its interval."""
    plain = found["rows"]["plain"]
    assert (plain["ratio"], plain["ratio_low"], plain["ratio_high"]) == (1.0, 1.0, 1.0)
    over = (found["ragged_over_ideal"], found["piggyback_over_training"])
    for row in (*found["rows"].values(), *over):
        if row.get("status", "ok") == "ok":
            assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]


def test_benchmark_memory_is_not_told_where_it_was_not_measured(found):
    """Without the measurement peak memory is None: never a guess."""
    for row in found["rows"].values():
        assert row.get("peak_bytes") is None
        assert row.get("peak_ratio") is None


def test_benchmark_peer_that_sets_up_logging_does_so_for_itself(monkeypatch, tmp_path):
    """A package whose import makes all information visible leaves ours as quiet as it was."""
    text = "import logging\nroot = logging.getLogger()\nroot.setLevel(1)\n"
    text += "root.addHandler(logging.StreamHandler())\n"
    (tmp_path / "noisy_peer.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    root = logging.getLogger()
    before = root.level, root.handlers.copy()
    assert peers.absent("noisy_peer") == ""
    assert "noisy_peer" in sys.modules
    assert (root.level, root.handlers) == before


def test_benchmark_absent_peer_is_a_row_that_says_so(monkeypatch, bench):
    """A package that is not there, is broken or fails gives its reason, and no figure."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert peers.absent("bergson") == "not installed"
    _, statuses = scoring._rows(bench, peers=True)
    assert statuses == {"bergson": "not installed", "dattri": "not installed"}

    def broken(_):
        return None.collector

    monkeypatch.setattr(scoring, "absent", lambda name: "")
    monkeypatch.setattr(scoring, "PEERS", {"bergson": broken})
    kept, statuses = scoring._rows(bench, peers=True)
    assert statuses == {
        "bergson": "failed (AttributeError: 'NoneType' object has no attribute 'collector')"
    }
    assert set(kept) == set(gradient_methods.ROWS)


def test_benchmark_interleaving_runs_each_row_once_a_repetition():
    """Every repetition holds every row once, the order turns, and the first one does not count."""
    calls: list[str] = []
    named = {name: lambda name=name: calls.append(name) or name for name in "abc"}
    times, last = timing.interleaved(named, 3, timing.Clock(cuda=False))
    turns = ["".join(calls[start : start + 3]) for start in range(0, 12, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) > 1
    assert {name: len(seconds) for name, seconds in times.items()} == dict.fromkeys("abc", 3)
    assert last == {"a": "a", "b": "b", "c": "c"}


def test_benchmark_ratio_is_the_median_of_repetitions():
    """A row twice as slow in every repetition gives 2, without an interval."""
    found = timing.ratio_of(np.array([2.0, 6.0, 1.0]), np.array([1.0, 3.0, 0.5]))
    assert found == {"ratio": 2.0, "ratio_low": 2.0, "ratio_high": 2.0}


def test_benchmark_lengths_are_as_stated():
    """Ragged lengths have the stated median and bounds.

    Their ideal has as many tokens, up to one a sample, hardly any padding, and as much attention.
    """
    lengths = workload.draw_lengths("ragged", 4000)
    assert abs(np.median(lengths) - workload.MEDIAN) < 0.05 * workload.MEDIAN
    assert workload.SHORTEST <= lengths.min() < lengths.max() == workload.LONGEST
    assert set(workload.draw_lengths("even", 9)) == {128}
    ideal = workload.unpadded(lengths, 2048)
    assert 0 <= lengths.sum() - ideal.sum() <= len(lengths)
    assert ideal.sum() <= workload.padded_tokens(ideal, 2048) <= 1.001 * ideal.sum()
    assert 0.99 * np.square(lengths).sum() <= np.square(ideal).sum() <= np.square(lengths).sum()
    assert workload.padded_tokens(workload.unpadded(lengths, 1), 1) == lengths.sum()


def test_benchmark_samples_have_the_asked_lengths(bench):
    """A sample of length n is n tokens, from the shortest to the longest."""
    lengths = np.array([workload.SHORTEST, 100, workload.LONGEST])
    asked = replace(bench, samples=workload.make_samples(lengths, "x"))
    assert [len(encoding.tokens) for encoding in asked.encodings()] == lengths.tolist()


def test_benchmark_memory_is_that_of_a_process():
    """Figures are bytes: peak >= resident >= anonymous; a process that has ended has 0."""
    held, own = process_memory.resident(), process_memory.anonymous(os.getpid())
    assert process_memory.peak_resident() >= held > own > 10_000_000
    assert process_memory.resident(2**22 + 1) == process_memory.anonymous(2**22 + 1) == 0


@pytest.mark.slow
def test_benchmark_peak_memory_is_measured_in_a_child():
    """The loop, which keeps every gradient, holds at least those beyond what is loaded."""
    short = replace(PLAN, data="short", samples=16)  # activations small beside 16 gradients
    found = bench_scoring(short, 1, peers=False, only=["loop"])
    held = 16 * found["rows"]["loop"]["kept_bytes"]
    assert found["rows"]["loop"]["peak_bytes"] > 0.9 * held
    assert found["rows"]["measure"]["peak_ratio"] > 0


def test_benchmark_scoring_prints_a_table_and_json(monkeypatch, found):
    """``bench scoring`` gives the same figures both ways; a wrong name is refused by name.

    The tiny shape gets samples enough to fill its batches, unless a number is asked for.
    """
    plans: list[scoring.Plan] = []
    monkeypatch.setattr(scoring, "bench_scoring", lambda plan, **_: plans.append(plan) or found)
    small = ["scoring", "--model", "tiny", "--data", "ragged", "--pairs", "2"]
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(cli_bench.app, small)
    assert shown.exit_code == 0, shown.output
    assert "torch.func.vmap" in shown.stdout
    assert "piggyback over training" in shown.stdout
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert any(line.startswith("fedwinnow, hooks ") and " – " in line for line in lines)
    assert all(f"{name}: " in " ".join(lines) for name in peers.PEERS if peers.absent(name))
    told = json.loads(CliRunner().invoke(cli_bench.app, [*small, "--json"]).stdout)
    assert told["tables"] == [found]
    CliRunner().invoke(cli_bench.app, [*small, "--model", "135m", "--samples", "3"])
    CliRunner().invoke(cli_bench.app, [*small, "--model", "135m"])
    asked = [(plan.model, plan.samples) for plan in plans[1:]]
    few, many = scoring.Plan().samples, 4 * scoring.Plan().samples
    assert asked == [("tiny", many), ("tiny", 3), ("135m", 3), ("tiny", many), ("135m", few)]
    assert told["machine"]["torch"] == torch.__version__
    wrong = CliRunner().invoke(cli_bench.app, ["scoring", "--model", "giant"])
    assert isinstance(wrong.exception, ConfigError)
    assert "tiny, 135m, 1b" in str(wrong.exception)
