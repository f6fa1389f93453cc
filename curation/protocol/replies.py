"""Replies of the message protocol, from a site to the coordinator."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Adapter, Metrics, ScoreSummary, SignalTable
from fedwinnow.curation.errors import ProtocolError
from fedwinnow.curation.protocol.header import UNSENT, Header
from fedwinnow.curation.protocol.refusal_clauses import why_no_clause, why_no_reference


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCard:
    """Description that a site gives of itself at join."""

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
    """Reply to join: the card and the seeded adapter θ_0, which is equal at every site."""

    header: Header
    site: str
    card: SiteCard
    adapter: Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicSignals:
    """Signal rows of PUBLIC samples; those of private samples stay at the site."""

    header: Header
    site: str
    table: SignalTable
    kinds: tuple[str, ...]
    parents: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedAdapter:
    """A site's update; ``adapter`` is None exactly where it kept no sample."""

    header: Header
    site: str
    samples: int
    """Samples it trains on over the rounds, rounded; counts of curriculum stages are not sent."""
    adapter: Adapter | None
    losses: tuple[float, ...]
    """Mean training loss of each optimizer step, nats: drawn in the report."""
    learning_rate: float
    """Mean learning rate of the round."""
    gradient: Adapter | None = field(default=None, metadata=UNSENT)
    """Gradient of the PUBLIC reference anchors' mean loss by each factor, nats, before training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryReply:
    """A site's histogram and its scores of the PUBLIC rows (which must agree between sites)."""

    header: Header
    site: str
    summary: ScoreSummary
    public_scores: Float[np.ndarray, " rows"]
    forecast: Mapping[str, float]
    unscored: int
    """Number of samples without a score (no target token, …), rounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptReply:
    """Number of samples that a site keeps, by arm; rounded."""

    header: Header
    site: str
    kept: Mapping[str, int]


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
class JudgedAdapters:
    """Losses of PUBLIC reference anchors under other sites' adapters, nats, in anchor order."""

    header: Header
    site: str
    before: Float[np.ndarray, " anchors"]
    """Losses under the adapter that the round started from."""
    losses: Mapping[str, Float[np.ndarray, " anchors"]]
    """Site → losses under its adapter."""
    domains: tuple[str, ...]
    """Domain of each anchor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A site's acknowledgement of the end of the run."""

    header: Header
    site: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A site's refusal or failure to compute; nothing of the silo's data is in the text.

    Raises:
        ProtocolError: the clause is none of the closed list, or the reference is malformed.
    """

    header: Header
    site: str
    clause: str
    """One of ``curation/protocol/refusal_clauses.py``."""
    reason: str
    """Constants of the request, of the agreed terms and of the policy; in a simulation all."""
    reference: str = field(default="", metadata=UNSENT)
    """Random letters that stand beside the full reason in the site's own log; "" in simulations."""

    def __post_init__(self) -> None:
        if why := why_no_clause(self.clause):
            message = f"Refusal.clause: {why}"
            raise ProtocolError(message)
        if why := why_no_reference(self.reference):
            message = f"Refusal.reference: {why}"
            raise ProtocolError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterReply:
    """Counts and sums of a site's clusters, in groups of at least its smallest cell."""

    header: Header
    site: str
    counts: tuple[int, ...]
    """Samples of each cluster, rounded down."""
    sums: Float[np.ndarray, "clusters checkpoints"]
    """The cluster's mean trajectory at this site times its count, float64."""
