"""What the server remembers: a frozen state with everything that a resumed run needs."""

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
    """Clusters of loss trajectories, in a run that has them."""

    centroids: Float[np.ndarray, "clusters checkpoints"]
    """What the next exchange, or the last one, is asked with."""
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Site → samples of each cluster in the last exchange, as it told them."""
    totals: tuple[int, ...] = ()
    quotas: tuple[int, ...] = ()
    """How many samples of each cluster all sites together keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRound:
    """What one site contributed to one training round."""

    samples: int
    weight: float
    losses: tuple[float, ...]
    alignment: float = field(default=0.0, metadata=UNSENT)
    """First-order drop of the public anchors' loss by its update, nats; 0 where nobody asks."""
    effects: Mapping[str, Effect] = field(default_factory=dict, metadata=UNSENT)
    """Domain of public anchors → what its adapter does there, where others judged it."""
    judged: bool = field(default=False, metadata=UNSENT)
    """Whether the other sites' judgement left its adapter out."""
    bounded: str = field(default="", metadata=UNSENT)
    """Which guards changed its contribution and why; "" for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """One exchange, for the report: who answered, what it cost, what came of it."""

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
    """Site → how many earlier requests it made up for before this one."""
    seconds: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """θ_t of the warm-up: what a site that was away when it was measured is asked with."""

    adapter: Adapter
    learning_rate: float
    """Mean learning rate of the round that led here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Everything that the server remembers; committed after every exchange."""

    run: str
    config: str
    """The resolved :class:`RunConfig` as canonical JSON."""
    phase: str = Phase.JOIN.value
    round: int = 0
    arm: str = ""
    members: tuple[SiteCard, ...] = ()
    initial: Adapter | None = None
    """θ_0: what probing, warm-up and every arm start from."""
    adapter: Adapter | None = None
    """The adapter that the next request speaks of."""
    change: Adapter | None = field(default=None, metadata=UNSENT)
    """What this arm's merges have added to the base; the trained adapter is one of that base."""
    pending: Mapping[str, Adapter] = field(default_factory=dict, metadata=UNSENT)
    """Site → its adapter of this round, until the other sites have judged it."""
    learning_rate: float = 0.0
    """Mean learning rate of the last warm-up round."""
    memory: Mapping[str, Float[np.ndarray, "..."]] = field(default_factory=dict)
    """What the merging rule carries from round to round, where it does; of this arm only."""
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
        """Names of the members in sorted order."""
        return tuple(sorted(card.site for card in self.members))

    @property
    def joined(self) -> dict[str, int]:
        """Member → how many samples it joined with; made anew at every call."""
        return {card.site: card.samples for card in self.members}


def run_config(state: RunState) -> RunConfig:
    """The configuration that the run was started with."""
    return _parsed(state.config)


@lru_cache(maxsize=4)
def _parsed(text: str) -> RunConfig:
    """Several times an exchange the same text."""
    return parse(json.loads(text), RunConfig)


def required(value: V | None, name: str) -> V:
    """A value that the phase needs.

    Raises:
        ProtocolError: it is None.
    """
    if value is None:
        message = f"state has no {name} where the phase needs one; the state file is not whole"
        raise ProtocolError(message)
    return value
