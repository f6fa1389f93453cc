"""Hold the coordinator's state of a run, frozen: everything that a resumed run needs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import parse
from fedwinnow.curation.datatypes import Adapter, ScoreSummary, SignalTable, ThresholdDecision
from fedwinnow.curation.errors import ProtocolError
from fedwinnow.curation.protocol.header import UNSENT
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.protocol.replies import SiteCard
from fedwinnow.strategies.interfaces.weighting import Effect

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clusters:
    """Clusters of loss trajectories: centroids, counts and quotas."""

    centroids: Float[np.ndarray, "clusters checkpoints"]
    """Centroids that the next exchange sends; after the last exchange, those that it sent."""
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Site → samples of each cluster, as it reported them in the last exchange."""
    totals: tuple[int, ...] = ()
    quotas: tuple[int, ...] = ()
    """Samples of each cluster that all sites together keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRound:
    """Contribution of one site to one training round."""

    samples: int
    weight: float
    losses: tuple[float, ...]
    alignment: float = field(default=0.0, metadata=UNSENT)
    """First-order drop of the public anchors' loss by its update, nats; 0 where it is not read."""
    effects: Mapping[str, Effect] = field(default_factory=dict, metadata=UNSENT)
    """Domain of public anchors → effect of its adapter on their loss, where others judged it."""
    judged: bool = field(default=False, metadata=UNSENT)
    """True where the other sites' judgement left its adapter out."""
    bounded: str = field(default="", metadata=UNSENT)
    """Guards that changed its contribution, and why; "" for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """Record of one exchange for the report: contributions, outcome, absences and cost."""

    phase: str
    round: int
    arm: str
    sites: Mapping[str, SiteRound] = field(default_factory=dict)
    merge: Mapping[str, float] = field(default_factory=dict)
    public_losses: tuple[float, ...] = ()
    """Loss of each public hold-out anchor, nats (median over sites)."""
    own_loss_sum: float = 0.0
    own_samples: int = 0
    prompts: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    generations: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    returned: Mapping[str, int] = field(default_factory=dict)
    """Site → number of missed requests that it answered late, before this one."""
    seconds: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Checkpoint θ_t of the warm-up, kept for a returning site that missed its measurement."""

    adapter: Adapter
    learning_rate: float
    """Mean learning rate of the warm-up round that ended here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """State of a run at the coordinator, committed after every exchange."""

    run: str
    config: str
    """The resolved :class:`RunConfig` as canonical JSON."""
    phase: str = Phase.JOIN.value
    round: int = 0
    arm: str = ""
    members: tuple[SiteCard, ...] = ()
    initial: Adapter | None = None
    """θ_0: the adapter that probing, warm-up and every arm start from."""
    adapter: Adapter | None = None
    """Adapter that the next request refers to."""
    change: Adapter | None = field(default=None, metadata=UNSENT)
    """Sum of what this arm's merges added to the base; the adapter is one of the changed base."""
    pending: Mapping[str, Adapter] = field(default_factory=dict, metadata=UNSENT)
    """Site → its adapter of this round, until the other sites have judged it."""
    learning_rate: float = 0.0
    """Mean learning rate of the last warm-up round."""
    memory: Mapping[str, Float[np.ndarray, "..."]] = field(default_factory=dict)
    """State that the merging rule carries from round to round of this arm; empty if it has none."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """θ_1 … θ_T, one after each warm-up round."""
    reviewers: Mapping[str, Adapter] = field(default_factory=dict, metadata=UNSENT)
    """Site → its own adapter of the last warm-up round, where a scorer asks for reviews."""
    tables: tuple[SignalTable, ...] = ()
    """Agreed public rows, one table per checkpoint."""
    kinds: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    summaries: Mapping[str, ScoreSummary] = field(default_factory=dict)
    unscored: Mapping[str, int] = field(default_factory=dict)
    public_scores: tuple[float, ...] = ()
    forecast: Mapping[str, float] = field(default_factory=dict)
    decision: ThresholdDecision | None = None
    clusters: Clusters | None = None
    """None before the score, and in a run without clusters."""
    kept: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Arm → site → number of kept samples."""
    finals: Mapping[str, Adapter] = field(default_factory=dict)
    """Arm → adapter at its end; an arm that keeps nothing has none."""
    records: tuple[RoundRecord, ...] = ()

    @property
    def sites(self) -> tuple[str, ...]:
        """Return the names of the members in sorted order."""
        return tuple(sorted(card.site for card in self.members))

    @property
    def joined(self) -> dict[str, int]:
        """Return member → number of samples it joined with; built anew at every call."""
        return {card.site: card.samples for card in self.members}


def run_config(state: RunState) -> RunConfig:
    """Return the configuration that the run was started with."""
    return _parsed(state.config)


@lru_cache(maxsize=4)
def _parsed(text: str) -> RunConfig:
    """Parse a configuration; cached, as every exchange asks for the same one several times."""
    return parse(json.loads(text), RunConfig)


def required(value: V | None, name: str) -> V:
    """Return a value that the phase needs.

    Raises:
        ProtocolError: the value is None.
    """
    if value is None:
        message = f"state has no {name} where the phase needs one; the state file is not whole"
        raise ProtocolError(message)
    return value
