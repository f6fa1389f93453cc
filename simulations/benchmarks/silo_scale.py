"""Measure a silo's memory by stage for ten thousand to a million samples.

One process for each size generates short texts and runs them through the stages of a site, with a
tiny model (hidden 32, two layers) and the files that a site writes:

    load      open the file; ids and domains are held, texts are mapped from the disk
    measure   loss, norm and dots with 8 references of every sample, shard by shard
    store     write the table of signals, let it go, and read it again
    score     cosine with the references, edges, and the histogram that leaves the silo
    select    read the scores, apply the threshold, write the selection

Growth of a stage = its peak beyond tokens and table / that of the smallest size, where *table*
holds the silo's ids, domains, signals, scores and selection, and *tokens* are those of one shard;
both are counted after the stage, at their real size.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedwinnow.client.data.samples import Samples, open_samples
from fedwinnow.client.measuring.measuring_pass import measure
from fedwinnow.client.measuring.pass_options import OnProgress, PassOptions
from fedwinnow.client.measuring.references import reference_state
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.run_files import RunFiles
from fedwinnow.client.signals.shards import SHARD, measure_in_shards, remove_shards
from fedwinnow.curation.config.scoring import AdapterSection, ColumnsSection, ModelSection
from fedwinnow.curation.datatypes import Adapter, Fitted, Sample, Scores, ScoreSummary, SignalTable
from fedwinnow.curation.model.lora_model import LoadedModel, get_adapter, set_adapter
from fedwinnow.curation.model.pretrained import encode, load_model
from fedwinnow.curation.process_guard import scratch_folder
from fedwinnow.curation.scores.histogram import quantile, summarise
from fedwinnow.curation.scores.histogram_edges import Edges, edges_from_public, snap_to_grid
from fedwinnow.curation.scores.selection import select_above
from fedwinnow.simulations.benchmarks.instruments.stage_monitor import (
    Say,
    Stage,
    say,
    size_of,
    stage,
    watch,
)
from fedwinnow.simulations.datasets.tiny_model import write_tiny_model
from fedwinnow.strategies.maths.blockwise_scoring import score_in_blocks
from fedwinnow.strategies.registry import build

COLUMNS = frozenset({"loss", "dot", "norm"})
REFERENCES = 8
LONGEST = 96
"""Most tokens of a sample."""
BATCH_TOKENS = 8192
_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty")


def bench_scale(
    samples: int = 100_000, *, first: int = 10_000, told: Say = lambda _: None
) -> list[dict[str, Any]]:
    """Run silos of growing size through all stages.

    Args:
        samples: Samples of the largest silo.
        first: Samples of the smallest one; each size between is ten times the one before.
        told: Called at the end of each stage.

    Returns:
        One row per size: ``samples`` and ``stages`` (see :func:`stages_with_growth`).

    Raises:
        RunError: a process ended with an error.
    """
    found = [
        (size, watch(__spec__.name, str(size), told=partial(say, told, f"{size:,} samples")))
        for size in ladder(first, samples)
    ]
    return stages_with_growth(found, "samples")


def ladder(first: int, most: int) -> tuple[int, ...]:
    """Return ``first``, ten times as many, …, and ``most`` at the end."""
    sizes = []
    while first < most:
        sizes.append(first)
        first *= 10
    return (*sizes, most)


def stages_with_growth(
    found: Sequence[tuple[int, Sequence[Stage]]], of: str
) -> list[dict[str, Any]]:
    """Return one row per size: the size under the name ``of``, and its stages with their growth.

    Returns:
        Each stage has ``name``, ``seconds``, ``peak_bytes`` (anonymous), ``resident_bytes`` (with
        mapped files), ``held`` (name → bytes), ``beyond_bytes`` (peak − held) and ``growth``
        (``beyond_bytes`` over that of the first size).
    """
    least = {one.name: one.beyond_bytes for one in found[0][1]}
    return [
        {
            of: size,
            "stages": [
                {
                    **asdict(one),
                    "beyond_bytes": one.beyond_bytes,
                    "growth": one.beyond_bytes / least[one.name],
                }
                for one in stages
            ],
        }
        for size, stages in found
    ]


def write_samples(path: Path, number: int) -> None:
    """Write questions and answers of 20 to 60 letters, no two alike, one JSON line each."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(number):
            words = [_WORDS[i // 10**k % 10] for k in range(1 + i % 4)]
            row = {"prompt": f"{i}: {words[0]}?", "response": f"{' '.join(words)} {i}."}
            file.write(json.dumps(row | {"domain": f"domain {i % REFERENCES}"}) + "\n")


def run_here(number: int, folder: Path) -> None:
    """Run all stages in this process."""
    data = folder / "data.jsonl"
    write_samples(data, number)
    loaded = _model(folder / "model")
    _measured(loaded, open_few(data), open_few(data), folder)  # warm up: not counted
    with stage("load") as held:
        samples = open_samples(str(data), ColumnsSection(domain="domain"))
        held["table"] = partial(size_of, samples.ids, samples.domains)
    with stage("measure") as held:
        table = _measured(loaded, samples, open_few(data), folder)
        held["tokens"] = partial(_token_bytes, loaded, samples)
        held["table"] = partial(size_of, table, samples.ids, samples.domains)
    files = RunFiles(folder)
    with stage("store") as held:
        tables.write_signals(files.signals(1), table)
        table = replace(table, ids=(), domains=(), columns={}, status=table.status[:0])  # let go
        table = tables.read_signals(files.signals(1))
        held["table"] = partial(size_of, table, samples.ids, samples.domains)
    with stage("score") as held:
        values, edges, summary = _scored(table)
        tables.write_scores(files.scores, table, {"cosine": values}, edges)
        held["table"] = partial(size_of, table, values, samples.ids, samples.domains)
    del table, values
    with stage("select") as held:
        ids, status, values = tables.read_scores(files.scores, "cosine")
        chosen = select_above(ids, values, status, snap_to_grid(quantile(summary, 0.6), edges))
        tables.write_selection(files.selection, {"curated": chosen})
        held["table"] = partial(size_of, chosen, values, status, samples.ids, samples.domains)


def _scored(table: SignalTable) -> tuple[Scores, Edges, ScoreSummary]:
    """Return a silo's scores, edges as public rows would give them, and the histogram."""
    scorer, start = build("scorer", "cosine", {}), replace(table, checkpoint=0, columns={})
    values = score_in_blocks(scorer, (start, table), Fitted(schema="cosine/1"))
    edges = edges_from_public(values[:1000], bins=256, probability=False)
    return values, edges, summarise(values, edges, smallest_cell=5)


def open_few(data: Path) -> tuple[Sample, ...]:
    """Read the first samples as anchors, two for each reference."""
    with data.open(encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(2 * REFERENCES), file, strict=False)]
    return tuple(Sample(id=str(i), **row) for i, row in enumerate(rows))


def _model(folder: Path) -> LoadedModel:
    section = ModelSection(name=str(write_tiny_model(folder)), max_length=LONGEST)
    lora = AdapterSection(rank=4, alpha=8.0, targets=("q_proj", "v_proj"))
    loaded = load_model(section, lora, seed=0)
    adapter, generator = get_adapter(loaded), torch.Generator().manual_seed(1)
    b = {k: torch.randn(v.shape, generator=generator) * 0.02 for k, v in adapter.b.items()}
    set_adapter(loaded, Adapter(base=adapter.base, a=adapter.a, b=b, scales=adapter.scales))
    return loaded


def _measured(
    loaded: LoadedModel, samples: Sequence[Sample], anchors: Sequence[Sample], folder: Path
) -> SignalTable:
    """Measure the signals of all samples in shards, as a site does."""
    options = PassOptions(batch_tokens=BATCH_TOKENS, max_length=LONGEST)
    references = reference_state(loaded, anchors, options, columns=COLUMNS)

    def one(shard: Sequence[Sample], on_progress: OnProgress | None) -> SignalTable:
        return measure(
            loaded,
            shard,
            options,
            columns=COLUMNS,
            checkpoint=1,
            references=references,
            contrast=(),
            contrast_prompts=0,
            on_progress=on_progress,
        )

    table = measure_in_shards(one, samples, files=RunFiles(folder), key=("scale",))
    remove_shards(RunFiles(folder))
    return table


def _token_bytes(loaded: LoadedModel, samples: Samples) -> float:
    """Return the bytes of the first shard's tokens; no more are held at a time."""
    first = (encode(loaded, one, max_length=LONGEST) for one in samples[:SHARD])
    return float(sum(encoding.tokens.nbytes for encoding in first))


def main() -> None:
    """Run the stages in a child process whose parent measures it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("samples", type=int)
    torch.set_num_threads(1)
    with scratch_folder() as place:
        run_here(parser.parse_args().samples, place)


if __name__ == "__main__":
    main()
