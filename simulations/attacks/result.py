"""What attacks came to: a row a run, a line a rule and attack; the files ``attacks.json``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedwinnow.curation.config.strict_toml import to_plain
from fedwinnow.simulations.attacks.attacked_federation import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundedRound:
    """A round in which the guards changed a site's contribution."""

    round: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFigures:
    """What a run's record says of the honest sites and of the liar."""

    losses: tuple[float, ...]
    """Of the public hold-out items, nats."""
    kept: float
    """Honest sites' kept share, in [0, 1]."""
    weight: float
    """The liar's mean weight over the rounds."""
    bounded: Mapping[str, tuple[BoundedRound, ...]]
    """Site → what the guards did to it, round by round."""
    missing: Mapping[str, str]
    """Site → where and why nothing of it counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerFigures:
    """How an adapter answers public hold-out prompts behind the trigger."""

    loss: float
    """Mean loss of the planted answer, nats a token."""
    share: float
    """Of prompts whose greedy answer is the planted one, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRow:
    """One run with its figures."""

    case: Case
    figures: CaseFigures
    trigger: TriggerFigures
    commit: str | None
    """Of the code that ran; None where it is not known."""
    bed: str
    """The federation in words."""

    def to_json(self) -> dict[str, Any]:
        """Return the row as in ``attacks.json``: flat but for the trigger."""
        rest = {"trigger": to_plain(self.trigger), "commit": self.commit, "bed": self.bed}
        return {**to_plain(self.case), **to_plain(self.figures), **rest}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackSide:
    """An attack's figures without or with guards, over all seeds."""

    loss: float
    """Mean honest loss, nats a token."""
    change: float
    """Of the loss, as a share of the loss without the liar."""
    low: float
    high: float
    """95 % interval of the change."""
    weight: float
    """The liar's mean weight."""
    kept: float
    """Honest sites' mean kept share."""
    trigger_loss: float
    trigger_loss_alone: float
    """The same without the liar and without guards."""
    trigger_share: float
    bounded: Mapping[str, Mapping[str, tuple[BoundedRound, ...]]]
    """Seed → site → what the guards did to it."""
    missing: Mapping[str, Mapping[str, str]]
    """Seed → site → where and why nothing of it counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackLine:
    """One threshold rule and attack; the attack "" is what guards cost where nobody lies."""

    rule: str
    attack: str
    loss: float
    """Of the honest sites alone, without guards, nats a token."""
    open: AttackSide
    guarded: AttackSide
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackResult:
    """All that the page of attacks shows."""

    command: str
    machine: str
    commit: str | None
    seeds: tuple[int, ...]
    bed: str
    attacks: Mapping[str, str]
    """Attack → what it does, in words."""
    table: tuple[AttackLine, ...]
    rows: tuple[AttackRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the tree of ``attacks.json``."""
        return {**to_plain(self), "rows": [row.to_json() for row in self.rows]}
