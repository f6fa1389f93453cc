"""What measuring costs beside an ordinary LoRA step: time and peak memory, in interleaved pairs.

Measuring: ``measure`` with dots against 8 references and norms. The ordinary step: the same
samples read, batched and run by the same functions with the same adapter and threads, but with
``backward()`` into the LoRA weights. Ratio of a pair = processor time of measuring / processor time
of the step; the figure is the median over pairs with a bootstrapped 95 % interval.

The model is a random Llama (hidden 256, 4 layers, MLP 704, 8 heads, vocabulary 2,048), rank 16 on
all seven linears, in float32 on the CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedwinnow.client.measuring import measure
from fedwinnow.client.references import References, reference_state
from fedwinnow.curation.config import AdapterSection, ModelSection
from fedwinnow.curation.losses import collate, plan_batches, sample_losses
from fedwinnow.curation.modeling import (
    LoadedModel,
    encode,
    get_adapter,
    load_model,
    set_adapter,
)
from fedwinnow.curation.nouns import Adapter, Sample
from fedwinnow.simulations.tiny import write_tiny_model

COLUMNS = frozenset({"dot", "norm"})
REFERENCES = 8
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What both sides of a pair work on."""

    loaded: LoadedModel
    references: References
    samples: tuple[Sample, ...]
    batch_tokens: int
    max_length: int

    def score(self) -> None:
        """Measure every sample."""
        measure(
            self.loaded,
            self.samples,
            columns=COLUMNS,
            checkpoint=1,
            references=self.references,
            contrast=(),
            contrast_prompts=0,
            batch_tokens=self.batch_tokens,
            max_length=self.max_length,
        )

    def step(self) -> None:
        """Forward and backward of the same batches into the LoRA weights."""
        encodings = [encode(self.loaded, s, max_length=self.max_length) for s in self.samples]
        lengths = np.array([len(encoding.tokens) for encoding in encodings])
        for places in plan_batches(lengths, self.batch_tokens):
            batch = collate([encodings[i] for i in places])
            sample_losses(self.loaded.model, batch).sum().backward()
            self.loaded.model.zero_grad(set_to_none=True)


def prepare(folder: Path, *, length: int = 128, batch: int = 16, batches: int = 2) -> Bench:
    """Bench on the model in ``folder``, samples of ``length`` tokens, B ≠ 0."""
    section = ModelSection(name=str(folder), max_length=length)
    loaded = load_model(section, AdapterSection(rank=16, alpha=32.0, targets=TARGETS), seed=0)
    adapter, generator = get_adapter(loaded), torch.Generator().manual_seed(1)
    b = {k: torch.randn(v.shape, generator=generator) * 0.02 for k, v in adapter.b.items()}
    set_adapter(loaded, Adapter(base=adapter.base, a=adapter.a, b=b, scales=adapter.scales))
    samples = _samples(batch * batches, length, "sample")
    anchors = _samples(2 * REFERENCES, length, "anchor")
    references = reference_state(
        loaded, anchors, columns=COLUMNS, batch_tokens=batch * length, max_length=length
    )
    return Bench(
        loaded=loaded,
        references=references,
        samples=samples,
        batch_tokens=batch * length,
        max_length=length,
    )


def bench_scoring(
    pairs: int = 15,
    *,
    length: int = 128,
    batch: int = 16,
    batches: int = 2,
    threads: int = 1,
    memory: bool = True,
) -> dict[str, float]:
    """Compare measuring with an ordinary step.

    Args:
        pairs: Interleaved pairs, in alternating order.
        length: Tokens of a sample.
        batch: Samples of a batch.
        batches: Batches of one side of a pair.
        threads: Of torch.
        memory: Whether to compare peak memory too, in two processes of their own.

    Returns:
        ``ratio`` (median), ``ratio_low`` and ``ratio_high`` (95 % interval), ``step_seconds`` and
        ``score_seconds`` (medians, processor time), ``memory_ratio`` (peak above the loaded model),
        ``step_bytes``, ``score_bytes``, ``pairs``.
    """
    kept = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as place:
            folder = write_model(Path(place) / "model")
            bench = prepare(folder, length=length, batch=batch, batches=batches)
            times = _pairs(bench, pairs)
            found = {"pairs": float(pairs), **_ratio(times)}
            if memory:
                sizes = {"length": length, "batch": batch, "batches": batches, "threads": threads}
                step, score = (_peak(folder, side, **sizes) for side in ("step", "score"))
                found |= {"memory_ratio": score / step, "step_bytes": step, "score_bytes": score}
    finally:
        torch.set_num_threads(kept)
    return found


def write_model(folder: Path) -> Path:
    """The benchmark's model."""
    return write_tiny_model(
        folder, hidden=256, layers=4, intermediate=704, heads=8, vocabulary=2048
    )


def _samples(number: int, length: int, tag: str) -> tuple[Sample, ...]:
    """Random letters: a quarter of the length prompt, the rest response."""
    draw = np.random.default_rng(len(tag))
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz "))
    asked = length // 4
    return tuple(
        Sample(
            id=f"{tag}{i}",
            prompt="".join(draw.choice(letters, asked)),
            response="".join(draw.choice(letters, length - asked - 4)),
            domain=f"domain {i % REFERENCES}",
        )
        for i in range(number)
    )


def _pairs(bench: Bench, pairs: int) -> np.ndarray:
    """(pairs, 2) processor seconds of step and score, after one unmeasured pair."""
    sides: tuple[Callable[[], None], ...] = (bench.step, bench.score)
    times = np.zeros((pairs + 1, 2))
    for pair in range(pairs + 1):
        for side in (0, 1) if pair % 2 else (1, 0):
            start = time.process_time()
            sides[side]()
            times[pair, side] = time.process_time() - start
    return times[1:]


def _ratio(times: np.ndarray) -> dict[str, float]:
    ratios = times[:, 1] / times[:, 0]
    draw = np.random.default_rng(0)
    again = np.median(draw.choice(ratios, (10_000, len(ratios))), axis=1)
    low, high = np.quantile(again, [0.025, 0.975])
    return {
        "ratio": float(np.median(ratios)),
        "ratio_low": float(low),
        "ratio_high": float(high),
        "step_seconds": float(np.median(times[:, 0])),
        "score_seconds": float(np.median(times[:, 1])),
    }


def _peak(folder: Path, side: str, *, length: int, batch: int, batches: int, threads: int) -> float:
    """Peak memory in bytes above that of the loaded model, in a fresh process (Linux)."""
    sizes = [str(number) for number in (length, batch, batches, threads)]
    done = subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-m", __spec__.name, "--peak", side, str(folder), *sizes],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},  # what is freed goes back at once
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout)


def peak_here(side: str, folder: str, *sizes: str) -> int:
    """Bytes by which one side of a pair raises this process's memory at most."""
    length, batch, batches, threads = (int(size) for size in sizes)
    torch.set_num_threads(threads)
    bench = prepare(Path(folder), length=length, batch=batch, batches=batches)
    getattr(bench, side)()  # what is made once is not counted
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    getattr(bench, side)()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    """A memory figure of this process, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = [line for line in text.splitlines() if line.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024


def main() -> None:
    """Run the benchmark and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--pairs", type=int, default=15, help="interleaved pairs")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sample")
    parser.add_argument("--batch", type=int, default=16, help="samples of a batch")
    parser.add_argument("--peak", nargs=6, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak:
        print(peak_here(*chosen.peak))
        return
    found = bench_scoring(chosen.pairs, length=chosen.length, batch=chosen.batch)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
