"""Result of the attacks: a row per run, a line per rule and attack; content of ``attacks.json``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedwinnow.curation.config.strict_toml import to_plain
from fedwinnow.simulations.attacks.attacked_federation import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundedRound:
    """Round in which the guards changed a site's contribution."""

    round: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFigures:
    """Figures of one run: of the honest sites and of the liar."""

    losses: tuple[float, ...]
    """Losses of the public hold-out items, nats."""
    kept: float
    """Honest sites' kept share, in [0, 1]."""
    weight: float
    """The liar's mean weight over the rounds."""
    bounded: Mapping[str, tuple[BoundedRound, ...]]
    """Site → rounds in which the guards bounded it, and why."""
    missing: Mapping[str, str]
    """Site → phase and reason of its first missing reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerFigures:
    """Answers of an adapter to public hold-out prompts behind the trigger."""

    loss: float
    """Mean loss of the planted answer, nats a token."""
    share: float
    """Share of prompts whose greedy answer is the planted one, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRow:
    """One run with its figures."""

    case: Case
    figures: CaseFigures
    trigger: TriggerFigures
    commit: str | None
    """Commit of the code that ran; None where unknown."""
    bed: str
    """The federation in words."""

    def to_json(self) -> dict[str, Any]:
        """Return the row as a JSON object, flat except for the trigger."""
        rest = {"trigger": to_plain(self.trigger), "commit": self.commit, "bed": self.bed}
        return {**to_plain(self.case), **to_plain(self.figures), **rest}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackSide:
    """An attack's figures without or with guards, over all seeds."""

    loss: float
    """Mean honest loss, nats a token."""
    change: float
    """Change of the loss, as a share of the loss without the liar."""
    low: float
    high: float
    """95 % interval of the change."""
    weight: float
    """The liar's mean weight."""
    kept: float
    """Honest sites' mean kept share."""
    trigger_loss: float
    trigger_loss_alone: float
    """Trigger loss without the liar and without guards."""
    trigger_share: float
    bounded: Mapping[str, Mapping[str, tuple[BoundedRound, ...]]]
    """Seed → site → rounds in which the guards bounded it, and why."""
    missing: Mapping[str, Mapping[str, str]]
    """Seed → site → phase and reason of its first missing reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackLine:
    """Line of one threshold rule and attack; attack "" gives the cost of guards without a liar."""

    rule: str
    attack: str
    loss: float
    """Loss of the honest sites alone, without guards, nats a token."""
    open: AttackSide
    guarded: AttackSide
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackResult:
    """Result of all attacks: everything that their page shows."""

    command: str
    machine: str
    commit: str | None
    seeds: tuple[int, ...]
    bed: str
    attacks: Mapping[str, str]
    """Attack → description of its actions."""
    table: tuple[AttackLine, ...]
    rows: tuple[AttackRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the tree of ``attacks.json``."""
        return {**to_plain(self), "rows": [row.to_json() for row in self.rows]}
