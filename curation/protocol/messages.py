"""The messages of the protocol: eleven requests, their replies, and the refusal.

Every message carries a :class:`Header`. A reply repeats the header of its request; one that does
not match the run, phase, round, arm or adapter is refused by name and changes nothing.
Nothing here can name code, a file or a sample of a silo: the fields below are all that travels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.cluster_messages import ClusterReply, ClusterRequest, QuotaRequest
from fedwinnow.curation.datatypes import Adapter, Metrics, ScoreSummary, SignalTable
from fedwinnow.curation.protocol.header import PROTOCOL, UNSENT, Header

__all__ = ["PROTOCOL", "UNSENT", "ClusterReply", "ClusterRequest", "Header", "QuotaRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    """Terms of the run, as canonical JSON text of :class:`fedwinnow.curation.config.run.RunTerms`."""

    header: Header
    terms: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCard:
    """What a site says of itself at join."""

    header: Header
    site: str
    samples: int
    """Size of the silo after its gates, rounded to the site's own granularity."""
    base: str
    """Fingerprint of the base model that the site loaded."""
    anchors: str
    """Hash of the anchor set that the site holds."""
    versions: Mapping[str, str]
    teacher: str = field(default="", metadata=UNSENT)
    """Fingerprint of the teacher that the site holds; "" where the run asks for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """Reply to join: the card and the seeded adapter θ_0, which every site makes alike."""

    header: Header
    site: str
    card: SiteCard
    adapter: Adapter


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
class PublicSignals:
    """Signal rows of PUBLIC samples; those of private samples stay at the site."""

    header: Header
    site: str
    table: SignalTable
    kinds: tuple[str, ...]
    parents: tuple[str, ...]


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
class TrainedAdapter:
    """A site's update; ``adapter`` is None exactly where it kept no sample."""

    header: Header
    site: str
    samples: int
    """How many samples it trains on over the rounds, rounded; stages of them are not told."""
    adapter: Adapter | None
    losses: tuple[float, ...]
    """Mean training loss of each optimizer step, nats: drawn in the report."""
    learning_rate: float
    """Mean learning rate of the round."""
    gradient: Adapter | None = field(default=None, metadata=UNSENT)
    """Gradient of the PUBLIC reference anchors' mean loss by each factor, nats, before training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """The agreed public rows, checkpoint by checkpoint: the site fits its scorer on them."""

    header: Header
    tables: tuple[SignalTable, ...]
    kinds: tuple[str, ...]
    parents: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryReply:
    """A site's histogram and its scores of the PUBLIC rows (which must agree between sites)."""

    header: Header
    site: str
    summary: ScoreSummary
    public_scores: Float[np.ndarray, " rows"]
    forecast: Mapping[str, float]
    unscored: int
    """How many samples have no score (no target token, …), rounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectRequest:
    """The threshold that every site applies."""

    header: Header
    threshold: float
    per_site: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptReply:
    """How many samples a site keeps, by arm; rounded."""

    header: Header
    site: str
    kept: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRequest:
    """Evaluate an adapter on public hold-out anchors and on the site's own hold-out."""

    header: Header
    adapter: Adapter
    generate: int = 0
    """How many public hold-out prompts to answer by greedy decoding, for the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsReply:
    """Losses of PUBLIC hold-out anchors one by one, sums for the site's own hold-out."""

    header: Header
    site: str
    public_losses: Float[np.ndarray, " anchors"]
    """Mean token loss of each public hold-out anchor, nats, in anchor order."""
    own: Metrics
    prompts: tuple[str, ...] = ()
    """The first PUBLIC hold-out prompts."""
    references: tuple[str, ...] = ()
    """Their PUBLIC answers."""
    generations: tuple[str, ...] = ()
    """The adapter's greedy answers to them."""


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
class JudgedAdapters:
    """Losses of PUBLIC reference anchors one by one, nats, in anchor order."""

    header: Header
    site: str
    before: Float[np.ndarray, " anchors"]
    """Under the adapter that the round started from."""
    losses: Mapping[str, Float[np.ndarray, " anchors"]]
    """Site → under its adapter."""
    domains: tuple[str, ...]
    """Domain of each anchor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseRequest:
    """The run is done; ``adapter`` in the header is the final hash."""

    header: Header


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A site acknowledges the end."""

    header: Header
    site: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A site says no, or could not compute; nothing of the silo's data is in the text."""

    header: Header
    site: str
    clause: str
    """Policy clause or error class that stands in the way."""
    reason: str


Request: TypeAlias = (
    JoinRequest
    | ProbeRequest
    | MeasureRequest
    | TrainRequest
    | ScoreRequest
    | ClusterRequest
    | QuotaRequest
    | SelectRequest
    | EvaluateRequest
    | JudgeRequest
    | CloseRequest
)
Reply: TypeAlias = (
    Joined
    | PublicSignals
    | TrainedAdapter
    | SummaryReply
    | ClusterReply
    | KeptReply
    | MetricsReply
    | JudgedAdapters
    | Receipt
    | Refusal
)
Message: TypeAlias = Request | Reply
