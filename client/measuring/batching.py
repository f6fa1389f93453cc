"""Run a pass in batches of as many tokens as asked for, or as memory allows; each sample once.

The longest samples run first (``client/measuring/length_buckets.py``), so that memory runs out
early or never. When it does run out, on any device and at any size,

    most ← ⌊tokens of the batch / 2⌋

and the memory of the batch is released. The model remembers this limit as long as the process
lives. The failed samples run again in smaller batches; a pass that sums over batches begins again.

With ``batch_tokens = 0`` the size is found by trial. A GPU begins at ``BEGIN`` tokens and goes to
at most twice as many after each full batch, up to ``MOST_GPU``, as long as

    bytes a token (peak of the last batch) · tokens  ≤  SHARE · free bytes.

A CPU takes ``MOST_CPU`` tokens, or fewer where the estimate of ``client/measuring/memory.py`` says
that they would take more than ``SHARE_CPU`` of what is available. Sizes change a result by rounding
only.

While a GPU works on a batch, a thread of the host collates the next one in page-locked memory.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Int

from fedwinnow.client.measuring.length_buckets import Buckets
from fedwinnow.client.measuring.memory import (
    CudaGauge,
    Gauge,
    available_bytes,
    out_of_memory,
    release_memory,
    token_bytes,
)
from fedwinnow.curation.config.scoring import LEAST
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.model.lora_model import BatchBudget, LoadedModel
from fedwinnow.curation.model.token_losses import Batch, collate
from fedwinnow.curation.tokens.tokenization import Encoding

logger = logging.getLogger(__name__)

BEGIN = 2048
"""Tokens of the first batch on a GPU."""
MOST_GPU = 65_536
"""Most tokens that are tried on a GPU: a choice, not yet measured on one."""
MOST_CPU = 2048
"""Most tokens that are tried on a CPU: the setting's own default."""
STEP = 256
"""Sizes found on a GPU are multiples of this many tokens, so that they change seldom."""
SHARE, SHARE_CPU = 0.8, 0.5
"""Share of the free memory that a batch may take: measured on a GPU, estimated on a CPU."""

Places: TypeAlias = Int[np.ndarray, " batch"]
"""Positions of a batch's samples among those of the pass."""
Run: TypeAlias = Callable[[Places, Batch], None]
"""Runs a batch that is on the model's device, and keeps its results only when all went well."""


def _nothing() -> None:
    pass


def run_in_batches(
    loaded: LoadedModel,
    encodings: Sequence[Encoding],
    run: Run,
    *,
    batch_tokens: int,
    kind: str,
    graph: bool = False,
    forget: Callable[[], None] = _nothing,
    adds_up: bool = False,
) -> None:
    """Run a pass over encodings; even if memory runs out, each is in one finished batch.

    Args:
        loaded: Model, which names the device and remembers sizes.
        encodings: Each with a target; may be empty.
        run: Called batch by batch, and again for the parts of a batch that ran out of memory.
        batch_tokens: Tokens of a batch, padding included; 0 finds the size.
        kind: Name under which sizes are remembered; passes of one kind hold equally much a token.
        graph: Whether a backward pass follows each forward pass.
        forget: Discards what a failed batch left behind.
        adds_up: Whether ``run`` keeps a sum over batches: then ``forget`` discards all of it, and
            the pass begins again.

    Raises:
        ModelError: one sample alone is too much; names its tokens and what to change.
    """
    lengths = np.array([len(one.tokens) for one in encodings], dtype=np.int64)
    buckets, start = Buckets(lengths), 0
    budget = _Budget.of(loaded, kind, batch_tokens, graph=graph)
    with ExitStack() as stack:
        pool = None
        if loaded.device.type == "cuda":
            pool = stack.enter_context(ThreadPoolExecutor(1, "fedwinnow-collate"))
        coming = Prefetcher(encodings, pool, pin=pool is not None)
        while start < len(lengths):
            places = buckets.batch(start, budget.tokens)
            after = buckets.batch(start + len(places), budget.tokens)
            padded = len(places) * int(lengths[places[0]])
            budget.begin()
            if _run_batch(run, coming, places, after, loaded.device):
                start += len(places)
                budget.grow(padded)
                continue
            forget()
            release_memory()
            budget.shrink(len(places), padded)
            start = 0 if adds_up else start


def _run_batch(
    run: Run, coming: "Prefetcher", places: Places, after: Places, device: torch.device
) -> bool:
    """Run one batch; return False on out-of-memory, when its stack frames are released."""
    try:
        batch = coming.batch_at(places, after).to(device)
        run(places, batch)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False
    return True


class Prefetcher:
    """Source of batches by position; with a thread, the next one is collated ahead of time."""

    def __init__(
        self, encodings: Sequence[Encoding], pool: ThreadPoolExecutor | None, *, pin: bool = False
    ) -> None:
        """Collate batches of encodings: ahead of time by ``pool``, page-locked if ``pin``."""
        self._encodings, self._pool, self._pin = encodings, pool, pin
        self._ahead: tuple[Places, Future[Batch]] | None = None

    def batch_at(self, places: Places, after: Places) -> Batch:
        """Return the batch at ``places``, and start collating that at ``after``, if any."""
        ahead, self._ahead = self._ahead, None
        known = ahead is not None and np.array_equal(ahead[0], places)
        batch = ahead[1].result() if ahead is not None and known else self._make(places)
        if self._pool is not None and len(after):
            self._ahead = (after, self._pool.submit(self._make, after))
        return batch

    def _make(self, places: Places) -> Batch:
        batch = collate([self._encodings[int(place)] for place in places])
        return batch.pinned() if self._pin else batch


@dataclass(slots=True, kw_only=True)
class _Budget:
    """Token budget of the next batch."""

    tokens: int
    size: BatchBudget
    kind: str
    gauge: Gauge | None = None
    """Gauge of a device whose batch size is to be found; None where it is fixed."""

    @classmethod
    def of(cls, loaded: LoadedModel, kind: str, asked: int, *, graph: bool) -> "_Budget":
        """Return the budget asked for, limited by what memory has allowed so far."""
        size = loaded.sizes.setdefault(kind, BatchBudget())
        gauge: Gauge | None = None
        if asked == 0:
            gauge = CudaGauge(loaded.device) if _gauged(loaded.device) else None
            size.grown = size.grown or (BEGIN if gauge else _estimate(loaded, kind, graph=graph))
            asked = size.grown
        return cls(
            tokens=min(asked, size.most) if size.most else asked,
            size=size,
            kind=kind,
            gauge=gauge,
        )

    def begin(self) -> None:
        """Start measuring memory, before a batch."""
        if self.gauge is not None:
            self.gauge.begin()

    def grow(self, padded: int) -> None:
        """Raise the budget after a batch that fitted, where the size is to be found.

        A batch that is less than half full says too little.
        """
        if self.gauge is None or self.size.most or 2 * padded < self.tokens:
            return
        each = max(1.0, self.gauge.used() / padded)
        bearable = int(SHARE * self.gauge.free() / each) // STEP * STEP
        found = max(LEAST, min(2 * self.tokens, MOST_GPU, bearable))
        if found != self.tokens:
            logger.info("batches of a %s pass hold up to %d tokens from now on", self.kind, found)
        self.tokens = self.size.grown = found

    def shrink(self, samples: int, padded: int) -> None:
        """Halve the budget after a batch that ran out of memory.

        Raises:
            ModelError: the batch was a single sample.
        """
        if samples == 1:
            message = (
                f"memory: one sample of {padded} tokens does not fit into a {self.kind} pass by "
                f"itself; set model.max_length below {padded}, or give the model more memory "
                "(model.dtype, model.quantization, fewer processes beside it)"
            )
            raise ModelError(message)
        self.tokens = self.size.most = max(1, padded // 2)
        logger.warning(
            "memory ran out in a %s pass on a batch of %d tokens; from now on a batch holds at "
            "most %d (measuring.batch_tokens)", self.kind, padded, self.tokens,
        )  # fmt: skip


def _gauged(device: torch.device) -> bool:
    """Return whether a device reports what a batch took."""
    return device.type == "cuda"


def _estimate(loaded: LoadedModel, kind: str, *, graph: bool) -> int:
    """Estimate the tokens of a batch on a CPU."""
    there = available_bytes()
    if there is None:
        logger.info("how much memory is available is unknown; a batch holds %d tokens", MOST_CPU)
        return MOST_CPU
    each = token_bytes(loaded.model, graph=graph)
    found = max(LEAST, min(MOST_CPU, int(SHARE_CPU * there / each)))
    logger.info("batches of a %s pass hold %d tokens, about %d bytes each", kind, found, each)
    return found
