"""Time scoring against an ordinary LoRA step and against other ways to per-sample gradients.

Every repetition runs each row once, in turning order. Ratio of a row in a repetition = its time /
that of ``plain`` in the same one; the figure is the median over repetitions with a bootstrapped
95 % interval. Time is processor time on a CPU and wall time on a GPU. Peak memory is the most that
a row adds to the loaded model: in a process of its own on a CPU, by torch's counters on a GPU.

    apart       largest |score − ours| / largest |ours|: checks that all rows compute the same
    teraflops   4 · (weights of the linear layers) · tokens / time: 2N forward and 2N backward, the
                head counted at the response's places only, padding not counted
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedwinnow.curation.process_guard import scratch_folder
from fedwinnow.simulations.benchmarks.gradient_methods import ROWS, Outcome, Row, factors
from fedwinnow.simulations.benchmarks.instruments.process_memory import (
    can_be_measured,
    environment,
    peak_resident,
    reset_peak,
    resident,
)
from fedwinnow.simulations.benchmarks.instruments.stage_monitor import Say
from fedwinnow.simulations.benchmarks.instruments.timing import Clock, interleaved, ratio_of
from fedwinnow.simulations.benchmarks.peers import PEERS, absent
from fedwinnow.simulations.benchmarks.workload import (
    Bench,
    Dtype,
    draw_lengths,
    make_samples,
    padded_tokens,
    prepare,
    unpadded,
    write_model,
)

BASELINE, OURS, IDEAL = "plain", "measure", "measure, no padding"
TRAINING, PIGGYBACK, CLIPPED, LAST = "train", "piggyback", "train, clipped", "last half"
"""Names of rows that are compared."""
EVERY: Mapping[str, Row] = {**ROWS, **PEERS}
"""Name → row, other projects' included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Model, data and sizes of one table."""

    model: str = "tiny"
    """Name of a shape."""
    data: str = "ragged"
    """Name of a distribution of lengths."""
    samples: int = 32
    batch_tokens: int = 2048
    """Tokens of a batch, padding included."""
    dtype: Dtype = "float32"
    threads: int = 1
    """Threads of torch, on the CPU."""


def bench_scoring(
    plan: Plan,
    pairs: int = 15,
    *,
    only: Collection[str] = (),
    peers: bool = True,
    memory: bool = True,
    told: Say = lambda _: None,
) -> dict[str, Any]:
    """Compare all rows on one kind of data.

    Args:
        plan: Model, data and sizes.
        pairs: Repetitions, after one that is not counted.
        only: Names of rows to run, besides those that are compared; none: all.
        peers: Whether to run other projects' rows, where they are installed.
        memory: Whether to measure peak memory too.
        told: Called with the current activity.

    Returns:
        ``plan``, ``clock``, ``pairs``, ``tokens``, ``padded_tokens``, ``weights`` (of linear
        layers), ``head_weights``, ``adapter_weights``, of ragged data ``ragged_over_ideal`` with
        its interval, ``piggyback_over_training`` likewise, and ``rows``: name → ``status`` and,
        where that is "ok", ``seconds``, ``ratio``, ``ratio_low``, ``ratio_high``,
        ``tokens_per_second``, ``teraflops``, ``apart``, ``kept_bytes`` (of one sample),
        ``peak_bytes``, ``peak_ratio``. None: not measured.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        with scratch_folder() as place:
            told(f"{plan.model}, {plan.data}: write and load the model")
            folder = write_model(place / "model", plan.model, dtype=plan.dtype)
            bench = _prepare(folder, plan)
            rows, statuses = _rows(bench, peers=peers, only=only)
            found = _timed(plan, bench, rows, pairs, told)
            if memory:
                told(f"{plan.model}, {plan.data}: peak memory")
                _add_memory(found["rows"], plan, folder, bench)
    finally:
        torch.set_num_threads(threads)
    found["rows"] |= {name: {"status": why} for name, why in statuses.items()}
    return found


def _prepare(folder: Path, plan: Plan) -> Bench:
    lengths = draw_lengths(plan.data, plan.samples)
    return prepare(folder, lengths, batch_tokens=plan.batch_tokens, dtype=plan.dtype)


def _rows(
    bench: Bench, *, peers: bool, only: Collection[str] = ()
) -> tuple[dict[str, Row], dict[str, str]]:
    """Return the rows that can be run, and why each other row cannot."""
    wanted = {*only, BASELINE, OURS} | ({TRAINING} if {PIGGYBACK, CLIPPED} & {*only} else set())
    wanted = wanted if only else set(EVERY)
    rows, statuses = {name: row for name, row in ROWS.items() if name in wanted}, dict[str, str]()
    for name, row in PEERS.items() if peers else ():
        if name not in wanted:
            continue
        why = absent(name)
        if not why:
            try:
                row(bench)
            except Exception as error:  # noqa: BLE001 - another project's code; the table says so
                why = f"failed ({type(error).__name__}: {str(error).strip()[:200]})"
        if why:
            statuses[name] = why
        else:
            rows[name] = row
    return rows, statuses


def _timed(
    plan: Plan, bench: Bench, rows: Mapping[str, Row], pairs: int, told: Say
) -> dict[str, Any]:
    """Measure every figure but memory."""
    lengths = draw_lengths(plan.data, plan.samples)
    sides = {name: (row, bench) for name, row in rows.items()}
    if len(set(lengths.tolist())) > 1:
        ideal = replace(bench, samples=make_samples(unpadded(lengths, plan.batch_tokens), "ideal"))
        sides[IDEAL] = (ROWS[OURS], ideal)
    told(f"{plan.model}, {plan.data}: {len(sides)} rows, {pairs} times each")
    clock = Clock(cuda=bench.loaded.device.type == "cuda")
    calls = {name: _call(*side) for name, side in sides.items()}
    times, outcomes = interleaved(calls, pairs, clock)
    work = _weights(bench)
    tokens, targets = _tokens(bench)
    operations = 4 * (work["weights"] * tokens + work["head_weights"] * targets)
    found: dict[str, Any] = {
        "plan": asdict(plan),
        "device": str(bench.loaded.device),
        "clock": clock.name,
        "pairs": pairs,
        "tokens": tokens,
        "padded_tokens": padded_tokens(lengths, plan.batch_tokens),
        **work,
        "rows": {},
    }
    for name, seconds in times.items():
        each = seconds * (tokens / _tokens(sides[name][1])[0])  # scaled to as many tokens
        middle = float(np.median(each))
        found["rows"][name] = {
            "status": "ok",
            "seconds": middle,
            **ratio_of(each, times[BASELINE]),
            "tokens_per_second": tokens / middle,
            "teraflops": operations / middle / 1e12,
            "apart": None if name in {IDEAL, LAST} else _apart(outcomes[name], outcomes[OURS]),
            "kept_bytes": outcomes[name].kept / plan.samples,
            "peak_bytes": None,
            "peak_ratio": None,
        }
        if name == IDEAL:
            found["ragged_over_ideal"] = ratio_of(times[OURS], each)
    if CLIPPED in times:
        found["clipped_over_training"] = ratio_of(times[CLIPPED], times[TRAINING])
    if PIGGYBACK in times:
        found["piggyback_over_training"] = ratio_of(times[PIGGYBACK], times[TRAINING])
    return found


def _call(row: Row, bench: Bench) -> Callable[[], Outcome]:
    return lambda: row(bench)


def _tokens(bench: Bench) -> tuple[int, int]:
    """Return the numbers of tokens of the samples and of those that count in a loss."""
    encodings = bench.encodings()
    lengths = [len(encoding.tokens) for encoding in encodings]
    return sum(lengths), sum(lengths) - sum(one.response_start for one in encodings)


def _weights(bench: Bench) -> dict[str, int]:
    """Return the numbers of weights in the base's linear layers, its head and the adapter."""
    adapter = {id(weight) for weight in factors(bench).values()}
    head = bench.loaded.model.get_output_embeddings()
    layers = [part for part in bench.loaded.model.modules() if isinstance(part, torch.nn.Linear)]
    return {
        "weights": sum(
            layer.weight.numel()
            for layer in layers
            if layer is not head and id(layer.weight) not in adapter
        ),
        "head_weights": head.weight.numel(),
        "adapter_weights": sum(weight.numel() for weight in factors(bench).values()),
    }


def _apart(found: Outcome, ours: Outcome) -> float | None:
    """Return a row's relative distance from our scores, with both or neither divided by norms."""
    if found.dots is None or ours.dots is None or ours.norms is None:
        return None
    expected = ours.dots / ours.norms[:, None] if found.unit else ours.dots
    return float(np.abs(found.dots - expected).max() / np.abs(expected).max())


def _add_memory(rows: Mapping[str, dict[str, Any]], plan: Plan, folder: Path, bench: Bench) -> None:
    """Put peak memory into the rows; it stays None where this system cannot measure it."""
    cuda = bench.loaded.device.type == "cuda"
    if not cuda and not can_be_measured():
        return
    for name, row in rows.items():
        if name != IDEAL:
            run = EVERY[name]
            row["peak_bytes"] = _peak_on_gpu(run, bench) if cuda else _peak(folder, name, plan)
    least = rows[BASELINE]["peak_bytes"]
    for name, row in rows.items():
        if name != IDEAL and least > 0:
            row["peak_ratio"] = row["peak_bytes"] / least


def _peak_on_gpu(row: Row, bench: Bench) -> float:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    row(bench)
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before)


def _peak(folder: Path, name: str, plan: Plan) -> float:
    """Return a row's peak memory in bytes above the loaded model, in a fresh process (Linux)."""
    done = subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-m", __spec__.name, name, str(folder), json.dumps(asdict(plan))],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])


def peak_here(name: str, folder: str, plan: Plan) -> int:
    """Return the peak growth of this process's memory by a row, in bytes."""
    torch.set_num_threads(plan.threads)
    bench = _prepare(Path(folder), plan)
    row = EVERY[name]
    row(bench)  # warm up: one-time allocations are not counted
    before = resident()
    reset_peak()
    row(bench)
    return peak_resident() - before


def main() -> None:
    """Measure peak memory in a child process and print it for its parent."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    for name in ("row", "folder", "plan"):
        parser.add_argument(name)
    chosen = parser.parse_args()
    print(peak_here(chosen.row, chosen.folder, Plan(**json.loads(chosen.plan))))


if __name__ == "__main__":
    main()
