"""Measure the server's time and memory by phase, up to selection, for ten to a thousand silos.

One process for each number of silos folds a run without training rounds: join, probe, score,
select. The silos are virtual: each reply is made here from public rows that all share and a
histogram of the silo's own, and travels through the wire. Growth of a phase = its peak beyond the
replies and the run's state, both at their real size in Python / that of the smallest federation.

Processor time is split: *silos* make and encode their replies, the *server* decodes and absorbs
them. The server's time per silo shows whether the fold is linear in the number of silos.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.scoring import PluginSection, RunSection
from fedwinnow.curation.config.training import StudySection, TrainingSection
from fedwinnow.curation.datatypes import Adapter, SignalTable
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.scores.histogram import summarise
from fedwinnow.curation.scores.histogram_edges import edges_from_public
from fedwinnow.server.run.fold import absorb, initial_state, next_request
from fedwinnow.server.state import RunState
from fedwinnow.simulations.benchmarks.instruments.stage_monitor import (
    Say,
    say,
    size_of,
    stage,
    watch,
)
from fedwinnow.simulations.benchmarks.silo_scale import ladder, stages_with_growth

ROWS = 400
"""Number of public rows, every second one corrupted."""
BINS = 256
SAMPLES = 1000
"""Samples of each silo."""
FEW = 3
"""Silos of a first fold that is not counted, as it loads and builds what is needed once."""
Staged = Callable[[str, dict[str, float]], AbstractContextManager[dict[str, Callable[[], float]]]]
_COLUMNS = ("loss", "loss_q90", "unconditional_loss")


def bench_silos(
    silos: int = 1000, *, first: int = 10, told: Say = lambda _: None
) -> list[dict[str, Any]]:
    """Fold federations of growing size.

    Args:
        silos: Number of silos of the largest federation.
        first: Number of silos of the smallest one; each number between is ten times the one before.
        told: Called at the end of each stage.

    Returns:
        One row per number of silos: ``silos`` and ``stages``; see
        :func:`~fedwinnow.simulations.benchmarks.silo_scale.stages_with_growth`.

    Raises:
        RunError: a process ended with an error.
    """
    found = [
        (number, watch(__spec__.name, str(number), told=partial(say, told, f"{number:,} silos")))
        for number in ladder(first, silos)
    ]
    return stages_with_growth(found, "silos")


def run_here(silos: int) -> RunState:
    """Run all phases in this process and return the state before the close."""
    _fold(FEW, lambda _name, _spent: nullcontext({}))
    return _fold(silos, stage)


def _fold(silos: int, staged: Staged) -> RunState:
    config = RunConfig(
        run=RunSection(name="scale", trajectory="none", minimum_sites=silos),
        threshold=PluginSection(name="keep_fraction", settings={"share": 0.6}),
        training=TrainingSection(rounds=0),
        study=StudySection(arms=("curated",)),
    )
    names = [f"silo-{i:04}" for i in range(silos)]
    state = initial_state(config, "scale")
    while (request := next_request(state)) is not None and state.phase != "close":
        spent = {"silos": 0.0, "server": 0.0}
        with staged(state.phase, spent) as held:
            replies = {name: _travelled(name, request, spent) for name in names}
            begin = time.process_time()
            state = absorb(state, replies)
            spent["server"] += time.process_time() - begin
            held["replies"] = partial(size_of, replies)
            held["state"] = partial(size_of, state)
        del replies
    return state


def answer(site: str, request: m.Request) -> m.Reply:
    """Return a virtual silo's reply."""
    header, seed = request.header, int(site.removeprefix("silo-"))
    if isinstance(request, m.JoinRequest):
        card = m.SiteCard(
            header=header, site=site, samples=SAMPLES, base="base", anchors="anchors", versions={}
        )
        return m.Joined(header=header, site=site, card=card, adapter=_adapter())
    if isinstance(request, m.ProbeRequest):
        kinds = tuple("clean" if i % 2 == 0 else "swap" for i in range(ROWS))
        parents = tuple(f"anchor {i // 2}" for i in range(ROWS))
        return m.PublicSignals(
            header=header, site=site, table=_public(), kinds=kinds, parents=parents
        )
    if isinstance(request, m.ScoreRequest):
        public, edges = _public_scores()
        own = np.random.default_rng(seed).normal(size=SAMPLES)
        return m.SummaryReply(
            header=header,
            site=site,
            summary=summarise(own, edges, smallest_cell=5),
            public_scores=public,
            forecast={"auroc": 0.5},
            unscored=0,
        )
    if isinstance(request, m.SelectRequest):
        own = np.random.default_rng(seed).normal(size=SAMPLES)
        return m.KeptReply(
            header=header, site=site, kept={"curated": int((own >= request.threshold).sum())}
        )
    message = f"a virtual silo does not answer {request.header.phase}"
    raise TypeError(message)


@cache
def _public_scores() -> tuple[np.ndarray, np.ndarray]:
    """Return scores of the public rows and the edges that every silo derives from them."""
    public = np.random.default_rng(0).normal(size=ROWS)
    return public, edges_from_public(public, bins=BINS, probability=False)


def _adapter() -> Adapter:
    generator = torch.Generator().manual_seed(0)
    return Adapter(
        base="base",
        a={"q_proj": torch.randn(4, 32, generator=generator)},
        b={"q_proj": torch.zeros(32, 4)},
        scales={"q_proj": 2.0},
    )


@cache
def _public() -> SignalTable:
    draw = np.random.default_rng(0)
    return SignalTable(
        ids=tuple(f"public {i}" for i in range(ROWS)),
        domains=("law",) * ROWS,
        checkpoint=0,
        status=np.zeros(ROWS, dtype=np.int8),
        columns={name: draw.normal(size=ROWS).astype(np.float32) for name in _COLUMNS},
    )


def _travelled(site: str, request: m.Request, spent: dict[str, float]) -> m.Reply:
    """Return a site's decoded reply; add to the processor seconds of both ends."""
    begin = time.process_time()
    data = wire.encode(answer(site, request))
    sent = time.process_time()
    reply = wire.decode(data)
    spent["silos"] += sent - begin
    spent["server"] += time.process_time() - sent
    return reply  # type: ignore[return-value]  # a reply went in


def main() -> None:
    """Run the phases in a child process whose parent measures it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("silos", type=int)
    torch.set_num_threads(1)
    run_here(parser.parse_args().silos)


if __name__ == "__main__":
    main()
