"""Requests of the message protocol, from the coordinator to a site."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Adapter, SignalTable
from fedwinnow.curation.protocol.header import UNSENT, Header


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    """Request to join a run under its terms."""

    header: Header
    terms: str
    """Canonical JSON text of ``RunTerms`` (``curation/config/run.py``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest:
    """Request to measure forward-only signals with the untrained adapter."""

    header: Header
    adapter: Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureRequest:
    """Request to measure every signal at checkpoint t ≥ 1."""

    header: Header
    adapter: Adapter
    checkpoint: int
    learning_rate: float
    """Mean learning rate of the warm-up round that led to this checkpoint."""
    reviewers: Mapping[str, Adapter] = field(default_factory=dict, metadata=UNSENT)
    """Site → its own adapter of the last warm-up round, where a scorer asks for reviews."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """Request to train from the given adapter; also warm-up, where the arm is ``""``."""

    header: Header
    adapter: Adapter
    step_offset: int
    """Optimizer steps that every site took in earlier rounds of this arm."""
    total_steps: int
    """Optimizer steps per site over all rounds: the learning-rate plan spans them."""
    sites: tuple[str, ...]
    """Members in sorted order: in warm-up each public calibration row trains at one of them."""
    frozen: str = field(default="", metadata=UNSENT)
    """The factor that every site leaves as it is, "a" or "b"; "" where it trains both."""
    change: Adapter | None = field(default=None, metadata=UNSENT)
    """Change of the base so far; the adapter then belongs to the changed base."""
    gradients_from: tuple[str, ...] = field(default=(), metadata=UNSENT)
    """Members that also send the gradient of the PUBLIC reference anchors at the adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """Request to fit the scorer on the agreed public rows, and to summarise the scores."""

    header: Header
    tables: tuple[SignalTable, ...]
    """The agreed public rows, checkpoint by checkpoint."""
    kinds: tuple[str, ...]
    parents: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectRequest:
    """Request to select samples by the threshold that every site applies."""

    header: Header
    threshold: float
    per_site: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRequest:
    """Request to evaluate an adapter on public hold-out anchors and the site's own hold-out."""

    header: Header
    adapter: Adapter
    generate: int = 0
    """Number of public hold-out prompts to answer by greedy decoding, for the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRequest:
    """Request to measure the other sites' adapters of this round on public anchors."""

    header: Header
    adapter: Adapter
    """The adapter that the round started from."""
    candidates: Mapping[str, Adapter]
    """Site → the adapter that it trained from that one; a site does not judge its own."""
    change: Adapter | None = field(default=None, metadata=UNSENT)
    """As in the round's training request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseRequest:
    """Request to close the finished run; ``adapter`` in the header is the final hash."""

    header: Header


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRequest:
    """Request to assign samples above the threshold to centroids: one exchange of k-means."""

    header: Header
    """Its round counts the exchanges, from 1."""
    threshold: float
    """The threshold that the selection will apply; the same in every exchange."""
    per_site: Mapping[str, float]
    centroids: Float[np.ndarray, "clusters checkpoints"]
    """Standardised losses; those of round 1 follow from the agreed public rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRequest:
    """Request to keep each cluster's best above the threshold, up to the site's share of its quota.

    It holds sums over sites: what a site keeps follows from them, the terms and its own counts.
    """

    header: Header
    threshold: float
    per_site: Mapping[str, float]
    totals: tuple[int, ...]
    """Samples of each cluster over all sites, as reported."""
    extra: Mapping[str, tuple[int, ...]]
    """Site → clusters in which it keeps one more: largest remainders."""
