"""Measure what a federation costs: ``fedwinnow bench rounds | merging | scoring | scale``."""

import json
import os
import platform
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedwinnow.cli.bench_tables import scale_tables, scoring_table
from fedwinnow.curation.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Measure what a federation costs on this machine.")

ROUND, HOP = 2.0, 1.5
"""Bars of the design: seconds beyond an empty message, ratio to a bare stream."""
APART, FASTER, HELD = 1e-5, 100.0, 3.0
"""Bars of merging: distance from the dense SVD, PEFT's time over ours, memory over adapters."""
BARS = (
    "the bars of ratios are for the default size: 4096 × 4096, 8 sites, rank 16, and for memory 32 "
    "sites and 32 layers; smaller ones need not meet them"
)
LARGE = "1b"
"""Shape that is left out on a CPU, unless it is named."""
FEW = {"tiny": 128}
"""Samples on a CPU, where a table of the shape takes minutes and not hours: batches are full."""


@app.callback()
def bench() -> None:
    """Measure what a federation costs on this machine."""


@app.command()
def rounds(
    pairs: Annotated[int, typer.Option(help="Rounds of each path.", min=1)] = 10,
    megabytes: Annotated[int, typer.Option(help="Size of the large adapter, MB.", min=1)] = 100,
    *,
    deployed: Annotated[
        bool, typer.Option(help="Start a whole deployment on loopback too (needs nginx).")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Time rounds without computing, and a large adapter up and down; run it on an idle machine."""
    from fedwinnow.cli.progress import ProgressDisplay  # noqa: PLC0415 - torch loads here
    from fedwinnow.simulations.benchmarks.agent_transfer import bench_transfer  # noqa: PLC0415 - likewise
    from fedwinnow.simulations.benchmarks.rounds import (  # noqa: PLC0415 - torch loads here
        bench_deployed,
        bench_in_process,
    )

    with ProgressDisplay(doing="rounds in this process") as watch:
        found = {"in_process": bench_in_process(pairs)}
        watch.say(f"{megabytes} MB up and down")
        found["transfer"] = bench_transfer(min(pairs, 5), megabytes=megabytes)
        if deployed:
            watch.say("rounds of a whole deployment")
            found["deployed"] = bench_deployed(pairs)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table("", "median", "bar", title="A round of three sites without its computing")
    table.add_row("in process, committed", f"{found['in_process']['seconds']:.3f} s", "")
    if deployed:
        over = found["deployed"]
        table.add_row("over the agents' sockets", f"{over['socket_seconds']:.3f} s", "")
        table.add_row("an empty Flower message", f"{over['empty_seconds']:.2f} s", "")
        table.add_row("over Flower, agents warm", f"{over['round_seconds']:.2f} s", "")
        extra = f"{over['overhead_seconds']:+.2f} s (worst {over['overhead_worst_seconds']:+.2f} s)"
        table.add_row("… beyond the empty message", extra, f"≤ {ROUND:.0f} s")
    hop = found["transfer"]
    table.add_section()
    table.add_row(f"{megabytes} MB up and down, bare gRPC", f"{hop['bare_seconds']:.2f} s", "")
    table.add_row("… through relay and agent", f"{hop['agent_seconds']:.2f} s", "")
    table.add_row("… ratio", f"{hop['ratio']:.2f}", f"≤ {HOP}")
    table.add_row("… to encrypt and decrypt once", f"{hop['encrypt_seconds']:.2f} s", "beside it")
    Console().print(table)


@app.command()
def merging(
    size: Annotated[int, typer.Option(help="Inputs and outputs of the module.", min=2)] = 4096,
    sites: Annotated[int, typer.Option(help="Sites that are merged.", min=1)] = 8,
    rank: Annotated[int, typer.Option(help="Rank of every adapter.", min=1)] = 16,
    memory_sites: Annotated[int, typer.Option(help="Sites of the memory test.", min=1)] = 32,
    layers: Annotated[int, typer.Option(help="Blocks of the memory test.", min=1)] = 32,
    *,
    peft: Annotated[
        bool, typer.Option(help="Time PEFT's SVD too (minutes at the default size).")
    ] = True,
    memory: Annotated[
        bool, typer.Option(help="Measure memory on adapters of Llama 3 8B's shape (minutes).")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Time every merging rule, and compare core_svd with dense SVDs and the adapters' own size."""
    from fedwinnow.cli.progress import ProgressDisplay  # noqa: PLC0415 - torch loads here
    from fedwinnow.simulations.benchmarks.merging import (  # noqa: PLC0415 - torch loads here
        bench_accuracy,
        bench_memory,
        bench_peft,
        bench_rules,
    )

    with ProgressDisplay(doing="accuracy and time of the rules") as watch:
        found: dict[str, Any] = {
            "accuracy": bench_accuracy(min(size, 512), sites, min(rank, size)),
            "rules": bench_rules(size, sites, min(rank, size)),
        }
        if peft:
            watch.say("PEFT's SVD")
            found["peft"] = bench_peft(size, sites, min(rank, size))
        if memory:
            watch.say("memory")
            found["memory"] = bench_memory(memory_sites, rank=rank, layers=layers)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    title = f"One {size} × {size} module, {sites} sites, rank {rank}"
    for table in (_rules(found["rules"], title), _bars(found)):
        Console().print(table)


@app.command()
def scoring(  # noqa: PLR0913 - options of a command
    model: Annotated[
        list[str] | None,
        typer.Option(help="tiny, 135m or 1b; repeat it. Default: all that fit (1b on a GPU only)."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Lengths: ragged, even (128) or short (32); repeat it. Default: all."),
    ] = None,
    row: Annotated[
        list[str] | None, typer.Option(help="Rows to run beside the baseline; repeat it.")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Repetitions of every row.", min=1)] = 15,
    samples: Annotated[
        int, typer.Option(help="Samples; 0: 128 of tiny, else 32, on a GPU 256.", min=0)
    ] = 0,
    batch_tokens: Annotated[
        int, typer.Option(help="Tokens of a batch; 0: 2048, on a GPU 16384.", min=0)
    ] = 0,
    threads: Annotated[int, typer.Option(help="Threads of torch on the CPU.", min=1)] = 1,
    peak: Annotated[
        float, typer.Option(help="Peak of the GPU in bf16, teraflops, for a column of shares.")
    ] = 0.0,
    *,
    peers: Annotated[
        bool, typer.Option(help="Time bergson and dattri too, where they are installed.")
    ] = True,
    memory: Annotated[
        bool, typer.Option(help="Measure peak memory too (a process for each row on a CPU).")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Time measuring against a LoRA step, the batch-1 loop, vmap and other projects."""
    from fedwinnow.simulations.benchmarks.shapes import DATA, SHAPES  # noqa: PLC0415 - with the rest of this command

    models, kinds = _chosen("model", model, SHAPES, ()), _chosen("data", data, DATA, DATA)
    import torch  # noqa: PLC0415 - torch loads here

    from fedwinnow.simulations.benchmarks.scoring import EVERY, Plan, bench_scoring  # noqa: PLC0415

    cuda = torch.cuda.is_available()
    models = models or [name for name in SHAPES if cuda or name != LARGE]
    sizes = partial(_sizes, samples, batch_tokens, cuda=cuda)
    plans = [Plan(model=m, data=d, threads=threads, **sizes(m)) for m in models for d in kinds]
    rows = _chosen("row", row, EVERY, ())
    run = partial(bench_scoring, pairs=pairs, only=rows, peers=peers, memory=memory)
    tables = _each_told(run, plans)
    if as_json:
        print(json.dumps({"machine": _machine(), "tables": tables}, indent=1))
    for found in () if as_json else tables:
        Console().print(scoring_table(found, peak=peak))


def _each_told(run: Callable[..., Any], plans: Iterable[Any]) -> list[Any]:
    """Return what ``run`` gives for each plan, and tell its progress meanwhile."""
    from fedwinnow.cli.progress import ProgressDisplay  # noqa: PLC0415 - torch loads here

    with ProgressDisplay() as watch:
        return [run(one, told=watch.say) for one in plans]


@app.command()
def scale(
    samples: Annotated[
        int, typer.Option(help="Samples of the largest silo; 0 leaves silos out.", min=0)
    ] = 100_000,
    silos: Annotated[
        int, typer.Option(help="Virtual silos of the largest federation; 0: none.", min=0)
    ] = 1000,
    first: Annotated[int, typer.Option(help="Samples of the smallest silo.", min=16)] = 10_000,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Take growing silos and federations through curation, and show time and memory (Linux)."""
    from fedwinnow.cli.progress import ProgressDisplay  # noqa: PLC0415 - torch loads here
    from fedwinnow.simulations.benchmarks.federation_scale import bench_silos  # noqa: PLC0415 - likewise
    from fedwinnow.simulations.benchmarks.instruments.process_memory import can_be_measured  # noqa: PLC0415
    from fedwinnow.simulations.benchmarks.silo_scale import bench_scale  # noqa: PLC0415 - torch loads here

    if not can_be_measured():
        message = f"bench scale reads memory from /proc, which {platform.system()} lacks; use Linux"
        raise ConfigError(message)
    found: dict[str, Any] = {"machine": _machine()}
    with ProgressDisplay() as watch:
        if samples:
            found["samples"] = bench_scale(samples, first=first, told=watch.say)
        if silos:
            found["silos"] = bench_silos(silos, told=watch.say)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for of in ("samples", "silos"):
        for table in scale_tables(found[of], of) if of in found else ():
            Console().print(table)


def _sizes(samples: int, batch_tokens: int, shape: str, *, cuda: bool) -> dict[str, Any]:
    """Return the sizes that are asked for, or where they are 0, those for the shape and device."""
    return {
        "samples": samples or (256 if cuda else FEW.get(shape, 32)),
        "batch_tokens": batch_tokens or (16_384 if cuda else 2048),
        "dtype": "bfloat16" if cuda else "float32",
    }


def _chosen(
    option: str, given: Sequence[str] | None, known: Collection[str], usual: Iterable[str]
) -> Sequence[str]:
    """Return the names that an option gives, or else the usual ones.

    Raises:
        ConfigError: a name is not known.
    """
    unknown = [name for name in given or () if name not in known]
    if unknown:
        message = f"--{option} {unknown[0]!r}: expected one of {', '.join(known)}"
        raise ConfigError(message)
    return given or list(usual)


def _machine() -> dict[str, Any]:
    """Return what the figures depend on: system, processor, device, versions."""
    import torch  # noqa: PLC0415 - torch loads here

    cuda = torch.cuda.is_available()
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _rules(rows: dict[str, dict[str, float]], title: str) -> Table:
    table = Table("rule", "processor time", "error", "rank", "to the base", title=title)
    for name, row in rows.items():
        moved = f"rank {row['change_rank']:.0f}" if row["change_rank"] else ""
        kept = f"{row['rank']:.0f}" if row["rank"] else ""
        table.add_row(name, f"{row['seconds']:.3f} s", f"{row['error']:.2g}", kept, moved)
    return table


def _bars(found: dict[str, Any]) -> Table:
    table = Table("core_svd", "found", "bar", caption=BARS)
    table.add_row("distance from the dense SVD", f"{found['accuracy']:.1e}", f"≤ {APART:.0e}")
    if "peft" in found:
        peft = found["peft"]
        table.add_row("processor time", f"{peft['core_seconds']:.3f} s", "")
        table.add_row("… of PEFT's SVD", f"{peft['peft_seconds']:.1f} s", "")
        table.add_row("… ratio", f"{peft['ratio']:.0f}", f"≥ {FASTER:.0f}")
        table.add_row("distance from PEFT's result", f"{peft['apart']:.1e}", "float32")
    if "memory" in found:
        memory = found["memory"]
        table.add_row("adapters in memory", f"{memory['adapters_bytes'] / 1e6:.0f} MB", "")
        table.add_row("… beyond them while merging", f"{memory['merge_bytes'] / 1e6:.0f} MB", "")
        table.add_row("… peak over adapters", f"{memory['ratio']:.2f}", f"< {HELD:.0f}")
        table.add_row("… processor time", f"{memory['seconds']:.0f} s", "")
    return table
