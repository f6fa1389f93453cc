"""Requests of the protocol: what the coordinator asks of a site."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Adapter, SignalTable
from fedwinnow.curation.protocol.header import UNSENT, Header


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    """Terms of the run, as canonical JSON text of ``RunTerms`` (``curation/config/run.py``)."""

    header: Header
    terms: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest:
    """Measure forward-only signals with the untrained adapter."""

    header: Header
    adapter: Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureRequest:
    """Measure every signal at checkpoint t ≥ 1."""

    header: Header
    adapter: Adapter
    checkpoint: int
    learning_rate: float
    """Mean learning rate of the warm-up round that led here."""
    reviewers: Mapping[str, Adapter] = field(default_factory=dict, metadata=UNSENT)
    """Site → its own adapter of the last warm-up round, where a scorer asks for reviews."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """Train from the given adapter; also warm-up, where the arm is ``""``."""

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
    """What the federation has added to the base so far; the adapter then is one of that base."""
    gradients_from: tuple[str, ...] = field(default=(), metadata=UNSENT)
    """Members that also tell the gradient of the PUBLIC reference anchors at the adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """The agreed public rows, checkpoint by checkpoint: the site fits its scorer on them."""

    header: Header
    tables: tuple[SignalTable, ...]
    kinds: tuple[str, ...]
    parents: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectRequest:
    """The threshold that every site applies."""

    header: Header
    threshold: float
    per_site: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRequest:
    """Evaluate an adapter on public hold-out anchors and on the site's own hold-out."""

    header: Header
    adapter: Adapter
    generate: int = 0
    """How many public hold-out prompts to answer by greedy decoding, for the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRequest:
    """What do the other sites' adapters of this round do to public anchors?"""

    header: Header
    adapter: Adapter
    """The one that the round started from."""
    candidates: Mapping[str, Adapter]
    """Site → what it made of it; a site does not judge its own."""
    change: Adapter | None = field(default=None, metadata=UNSENT)
    """As in the round's training request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseRequest:
    """The run is done; ``adapter`` in the header is the final hash."""

    header: Header


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRequest:
    """Which samples above the threshold are nearest to which centroid: one exchange of k-means."""

    header: Header
    """Its round counts the exchanges, from 1."""
    threshold: float
    """The one that the selection will apply, in every exchange alike."""
    per_site: Mapping[str, float]
    centroids: Float[np.ndarray, "clusters checkpoints"]
    """Standardised losses; those of round 1 follow from the agreed public rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRequest:
    """Apply the threshold, then keep the best of each cluster up to the site's share of its quota.

    Holds sums over sites: what a site keeps follows from them, from the terms and its own counts.
    """

    header: Header
    threshold: float
    per_site: Mapping[str, float]
    totals: tuple[int, ...]
    """Samples of each cluster over all sites, as they told them."""
    extra: Mapping[str, tuple[int, ...]]
    """Site → clusters in which it keeps one more: largest remainders."""
