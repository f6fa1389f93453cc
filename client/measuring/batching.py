"""Batches of a pass: as many tokens as are asked for, or as memory bears; every sample once.

Longest samples first (``client/measuring/length_buckets.py``), so that memory runs out early or
never. Where it does run out, on any device and at any size,

    most ← ⌊tokens of the batch / 2⌋

with what the batch held given back; the size is remembered with the model, as long as the process.
The failed samples run again in smaller batches; a pass that adds batches up begins again.

With ``batch_tokens = 0`` the size is found. A GPU begins at ``BEGIN`` tokens and goes to at most
twice as many after each full batch, up to ``MOST_GPU``, as long as

    bytes a token (peak of the last batch) · tokens  ≤  SHARE · free bytes.

A CPU takes ``MOST_CPU`` tokens, or fewer where the estimate of ``client/measuring/memory.py``
says that they
would take more than ``SHARE_CPU`` of what is available. Sizes change a result by rounding only.

While a GPU works on a batch, a thread of the host makes the next one, in page-locked memory.
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
from fedwinnow.curation.model.tokenization import Encoding

logger = logging.getLogger(__name__)

BEGIN = 2048
"""Tokens of the first batch on a GPU."""
MOST_GPU = 65_536
"""Most tokens that are tried on a GPU: a choice, not yet measured on one."""
MOST_CPU = 2048
"""Most tokens that are tried on a CPU: the setting's own default."""
STEP = 256
"""Sizes that memory sets on a GPU are multiples of so many tokens, so that they change seldom."""
SHARE, SHARE_CPU = 0.8, 0.5
"""Of the free memory, what a batch may take: measured on a GPU, estimated on a CPU."""

Places: TypeAlias = Int[np.ndarray, " batch"]
"""Positions of a batch's samples among those of the pass."""
Run: TypeAlias = Callable[[Places, Batch], None]
"""Runs a batch that is on the model's device, and keeps what it is after when all has gone well."""


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
    """Run a pass over encodings; whatever memory does, each sample is in one finished batch.

    Args:
        loaded: On whose device; remembers sizes.
        encodings: Each with a target; may be empty.
        run: Called for one batch after the other, again for parts of one that memory did not bear.
        batch_tokens: Tokens of a batch, padding included; 0 finds the size.
        kind: Which sizes are alike: passes of the same kind hold as much for a token.
        graph: Whether a backward pass follows each forward pass.
        forget: Takes back what a failed batch left behind.
        adds_up: What ``run`` keeps is a sum over batches, so ``forget`` takes all of it back, and
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
    """Whether memory bore the batch; its frames are gone when this returns."""
    try:
        batch = coming.batch_at(places, after).to(device)
        run(places, batch)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False
    return True


class Prefetcher:
    """Batches by their places; with a thread, the next one is made while this one is used."""

    def __init__(
        self, encodings: Sequence[Encoding], pool: ThreadPoolExecutor | None, *, pin: bool = False
    ) -> None:
        """Make batches of encodings: ahead of time by ``pool``, page-locked if ``pin``."""
        self._encodings, self._pool, self._pin = encodings, pool, pin
        self._ahead: tuple[Places, Future[Batch]] | None = None

    def batch_at(self, places: Places, after: Places) -> Batch:
        """The batch of ``places``; that of ``after`` is begun, if there is any."""
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
    """Tokens of the next batch."""

    tokens: int
    size: BatchBudget
    kind: str
    gauge: Gauge | None = None
    """Of a device whose size is to be found; None where it is fixed."""

    @classmethod
    def of(cls, loaded: LoadedModel, kind: str, asked: int, *, graph: bool) -> "_Budget":
        """What is asked for, within what memory has shown."""
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
        """Before a batch."""
        if self.gauge is not None:
            self.gauge.begin()

    def grow(self, padded: int) -> None:
        """After a batch of so many tokens that went well: try more, where the size is to be found.

        A batch that is less than half full tells too little.
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
        """After a batch that memory did not bear: half of it from now on.

        Raises:
            ModelError: it was a single sample.
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
    """Whether a device tells what a batch took."""
    return device.type == "cuda"


def _estimate(loaded: LoadedModel, kind: str, *, graph: bool) -> int:
    """Tokens of a batch on a CPU."""
    there = available_bytes()
    if there is None:
        logger.info("how much memory is available is unknown; a batch holds %d tokens", MOST_CPU)
        return MOST_CPU
    each = token_bytes(loaded.model, graph=graph)
    found = max(LEAST, min(MOST_CPU, int(SHARE_CPU * there / each)))
    logger.info("batches of a %s pass hold %d tokens, about %d bytes each", kind, found, each)
    return found
