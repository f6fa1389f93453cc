"""``fedwinnow bench rounds``: what a round and a large adapter cost beyond what they must."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Measure what a federation costs on this machine.")

ROUND, HOP = 2.0, 1.5
"""Bars of the design: seconds beyond an empty message, ratio to a bare stream."""


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
    from fedwinnow.simulations.benchmarks.rounds import (  # noqa: PLC0415 - torch loads here
        bench_deployed,
        bench_in_process,
    )
    from fedwinnow.simulations.benchmarks.transfer import bench_transfer  # noqa: PLC0415 - likewise

    found = {"in_process": bench_in_process(pairs)}
    found["transfer"] = bench_transfer(min(pairs, 5), megabytes=megabytes)
    if deployed:
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
    table.add_row("… through shim and agent", f"{hop['agent_seconds']:.2f} s", "")
    table.add_row("… ratio", f"{hop['ratio']:.2f}", f"≤ {HOP}")
    table.add_row("… to encrypt and decrypt once", f"{hop['seal_seconds']:.2f} s", "beside it")
    Console().print(table)
