"""Measure merging: its error against a dense SVD, time against PEFT, memory against the adapters.

Error: ‖core_svd − dense truncated SVD‖ / ‖dense truncated SVD‖ in float64. Time: processor time
of PEFT's ``add_weighted_adapter(combination_type="svd")`` over that of ``core_svd`` on the same
factors of one module, in one run. Memory: peak growth of a process that makes the sites' adapters
and merges them, over the adapters' own bytes. Rules: time, and distance from the mean update
ΔW* = Σ p_i s_i B_i A_i.

Factors are √(1 − h) common + √h own, h = 1/2, with A of variance 1 / inputs and B of 1 / rank;
where a rule needs it, all sites share A.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters import checks
from fedwinnow.curation.datatypes import Adapter, SparseAdapter
from fedwinnow.simulations.benchmarks.instruments.process_memory import (
    environment,
    peak_resident,
    reset_peak,
    resident,
)
from fedwinnow.strategies.interfaces.merging import FactorMerging, Merged, Merging, SparseMerging
from fedwinnow.strategies.registry import BUILT_IN, build

SCALE = 2.0
MODULE = "m"
LLAMA_8B = {
    "q_proj": (4096, 4096),
    "k_proj": (1024, 4096),
    "v_proj": (1024, 4096),
    "o_proj": (4096, 4096),
    "gate_proj": (14336, 4096),
    "up_proj": (14336, 4096),
    "down_proj": (4096, 14336),
}
"""Outputs and inputs of the seven linear layers of a block of Llama 3 8B."""
Figures = dict[str, float]
T = TypeVar("T")


def federation(
    size: int, sites: int, rank: int, *, shared_a: bool = False
) -> tuple[dict[str, Adapter], Adapter]:
    """Make sites' adapters of one size × size module, and the untrained adapter of their start."""
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int, columns: int, variance: float) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * math.sqrt(variance)

    common_a, common_b = draw(rank, size, 1 / size), draw(size, rank, 1 / rank)
    found = {}
    for i in range(sites):
        a = (common_a + draw(rank, size, 1 / size)) * math.sqrt(0.5)
        b = (common_b + draw(size, rank, 1 / rank)) * math.sqrt(0.5)
        found[f"site-{i:02}"] = _one(common_a.clone() if shared_a else a, b)
    return found, _one(common_a, torch.zeros(size, rank))


def _one(a: torch.Tensor, b: torch.Tensor) -> Adapter:
    return Adapter(base="base", a={MODULE: a}, b={MODULE: b}, scales={MODULE: SCALE})


def bench_accuracy(size: int = 512, sites: int = 8, rank: int = 16) -> float:
    """Return the relative distance of ``core_svd`` from the dense truncated SVD in float64."""
    found, start = federation(size, sites, rank)
    equal = dict.fromkeys(found, 1.0)
    dense = sum(
        (_dense(one) / sites for one in found.values()),
        start=torch.zeros(size, size, dtype=torch.float64),
    )
    u, values, vt = torch.linalg.svd(dense, full_matrices=False)
    best = u[:, :rank] * values[:rank] @ vt[:rank]
    merging: Merging = build("merging", "core_svd", {})
    return float((_dense(merging(found, equal, start).adapter) - best).norm() / best.norm())


def _dense(adapter: Adapter) -> torch.Tensor:
    product = adapter.b[MODULE].to(torch.float64) @ adapter.a[MODULE].to(torch.float64)
    return adapter.scales[MODULE] * product


def bench_peft(size: int = 4096, sites: int = 8, rank: int = 16, *, repeats: int = 5) -> Figures:
    """Time PEFT's dense SVD and ``core_svd`` on the same factors: processor time, one thread.

    Returns:
        ``core_seconds`` (median of ``repeats``), ``peft_seconds`` (once), ``ratio`` (PEFT over
        core), ``apart`` (relative distance of the two results; PEFT works in float32).
    """
    kept = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found, start = federation(size, sites, rank)
        equal = dict.fromkeys(found, 1.0 / sites)
        merging: Merging = build("merging", "core_svd", {})
        merging(found, equal, start)  # warm up: one-time loading is not counted
        timed = [_timed(lambda: merging(found, equal, start)) for _ in range(repeats)]
        model = _peft_model(size, found)
        peft, _ = _timed(
            lambda: model.add_weighted_adapter(
                list(found), list(equal.values()), "merged", combination_type="svd", svd_rank=rank
            )
        )
    finally:
        torch.set_num_threads(kept)
    other = model.base_model.model.m.get_delta_weight("merged").detach().to(torch.float64)
    core = sorted(seconds for seconds, _ in timed)[repeats // 2]
    ours = _dense(timed[0][1].adapter)
    return {
        "core_seconds": core,
        "peft_seconds": peft,
        "ratio": peft / core,
        "apart": float((ours - other).norm() / other.norm()),
    }


def _peft_model(size: int, found: Mapping[str, Adapter]) -> Any:  # noqa: ANN401 - PEFT has no types
    """Return a PEFT model of one linear layer that holds the sites' adapters."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - PEFT loads here

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = nn.Linear(size, size, bias=False)

    names = list(found)
    ranks = {name: one.a[MODULE].shape[0] for name, one in found.items()}
    configs = {
        name: LoraConfig(r=rank, lora_alpha=int(SCALE * rank), target_modules=[MODULE])
        for name, rank in ranks.items()
    }
    model: Any = get_peft_model(One(), configs[names[0]], adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, configs[name])
    layer = model.base_model.model.m
    with torch.no_grad():
        for name, one in found.items():
            layer.lora_A[name].weight.copy_(one.a[MODULE])
            layer.lora_B[name].weight.copy_(one.b[MODULE])
    return model


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the processor seconds and the result of the work."""
    start = time.process_time()
    given = work()
    return time.process_time() - start, given


def bench_rules(size: int = 1024, sites: int = 8, rank: int = 16) -> dict[str, Figures]:
    """Measure every built-in rule, at its default settings, on one size × size module.

    Returns:
        Name → ``seconds`` (processor time), ``error`` (distance from ΔW*, the change of the base
        included, over ‖ΔW*‖), ``rank`` of the adapter, ``change_rank`` (0 for most) and, where
        the rule reports it, ``discarded_energy``.
    """
    rows = {}
    for name in sorted(BUILT_IN["merging"]):
        rule = build("merging", name, {})
        if isinstance(rule, SparseMerging):
            rows[name] = _sparse_row(rule, size, sites)
            continue
        shared = isinstance(rule, FactorMerging)
        found, start = federation(size, sites, rank, shared_a=shared)
        shares = dict.fromkeys(found, 1.0 / sites)
        seconds, merged = _timed(lambda: rule(found, shares, start))  # noqa: B023 - called here
        rows[name] = {"seconds": seconds, **_row(merged, maths.target(found, shares, MODULE))}
    return rows


def _row(merged: Merged, target: maths.Product) -> Figures:
    parts = [target, maths.delta(merged.adapter, MODULE, -1.0)]
    if merged.change is not None:
        parts.append(maths.delta(merged.change, MODULE, -1.0))
    row = {
        "error": maths.norm(maths.sum_products(parts)) / maths.norm(target),
        "rank": float(merged.adapter.a[MODULE].shape[0]),
        "change_rank": float(merged.change.a[MODULE].shape[0]) if merged.change else 0.0,
    }
    if "discarded_energy" in merged.report:
        row["discarded_energy"] = merged.report["discarded_energy"]
    return row


def _sparse_row(rule: SparseMerging, size: int, sites: int) -> Figures:
    """Measure a rule for sparse adapters: random supports, as many entries as the rule allows."""
    generator, entries = torch.Generator().manual_seed(0), int(rule.density * size * size)
    dense, found = torch.zeros(size * size, dtype=torch.float64), {}
    shape = {MODULE: (size, size)}
    for i in range(sites):
        places = torch.randperm(size * size, generator=generator)[:entries].sort().values
        values = torch.randn(entries, generator=generator)
        dense[places] += values.to(torch.float64) / sites
        found[f"site-{i:02}"] = SparseAdapter(
            base="base", indices={MODULE: places}, values={MODULE: values}, shapes=shape
        )
    empty = {MODULE: torch.zeros(0, dtype=torch.int64)}
    nothing = {MODULE: torch.zeros(0)}
    none = SparseAdapter(base="base", indices=empty, values=nothing, shapes=shape)
    seconds, merged = _timed(lambda: rule(found, dict.fromkeys(found, 1.0), none))
    norm = dense.norm()
    dense[merged.adapter.indices[MODULE]] -= merged.adapter.values[MODULE].to(torch.float64)
    return {
        "seconds": seconds,
        "error": float(dense.norm() / norm),
        "rank": 0.0,
        "change_rank": 0.0,
    }


def bench_memory(
    sites: int = 32, *, rank: int = 16, layers: int = 32, narrow: int = 1, rule: str = "core_svd"
) -> Figures:
    """Measure a server's peak memory as it holds and merges bf16 adapters of Llama 3 8B's shape.

    Args:
        sites: Number of adapters.
        rank: Rank of every module.
        layers: Blocks of seven modules; 32 in the model.
        narrow: Divisor of every width, for a quick look.
        rule: Name of a merging.

    Returns:
        ``adapters_bytes`` (of all sites), ``peak_bytes`` (growth of a fresh process, adapters
        included), ``ratio`` (peak over adapters), ``merge_bytes`` (peak beyond the memory held when
        the merge began), ``seconds`` (of the merge).
    """
    numbers = [str(number) for number in (sites, rank, layers, narrow)]
    done = subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-m", __spec__.name, "--memory", rule, *numbers],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: Figures = json.loads(done.stdout)
    return found


def memory_here(rule: str, sites: int, rank: int, layers: int, narrow: int) -> Figures:
    """Return the figures of :func:`bench_memory` for this process."""
    merging: Merging = build("merging", rule, {})
    small, start = federation(32, 2, 2, shared_a=isinstance(merging, FactorMerging))
    merging(small, dict.fromkeys(small, 1.0), start)  # warm up: one-time loading is not counted
    before = resident()
    reset_peak()
    first = _llama(0, rank, layers, narrow)
    found = {f"site-{i:02}": _llama(i, rank, layers, narrow) for i in range(sites)}
    if isinstance(merging, FactorMerging):
        found = {site: replace(one, a=first.a) for site, one in found.items()}
    held = resident()
    seconds, _ = _timed(lambda: merging(found, dict.fromkeys(found, 1.0), first))
    peak, own = peak_resident() - before, sum(checks.adapter_bytes(one) for one in found.values())
    return {
        "adapters_bytes": float(own),
        "peak_bytes": float(peak),
        "ratio": peak / own,
        "merge_bytes": float(peak - (held - before)),
        "seconds": seconds,
    }


def _llama(seed: int, rank: int, layers: int, narrow: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    a: dict[str, torch.Tensor] = {}
    b: dict[str, torch.Tensor] = {}
    for layer in range(layers):
        for name, (outputs, inputs) in LLAMA_8B.items():
            for factors, shape in ((a, (rank, inputs // narrow)), (b, (outputs // narrow, rank))):
                drawn = torch.randn(*shape, generator=generator, dtype=torch.bfloat16)
                factors[f"layers.{layer}.{name}"] = drawn
    return Adapter(base="base", a=a, b=b, scales=dict.fromkeys(a, SCALE))


def main() -> None:
    """Measure memory in a child process and print the figures for its parent."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--memory", nargs=5, required=True, metavar="RULE N N N N")
    rule, *numbers = parser.parse_args().memory
    print(json.dumps(memory_here(rule, *(int(number) for number in numbers))))


if __name__ == "__main__":
    main()
