"""Types and checks that the phases share."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.model.base_change import effective_adapter
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.messages import Reply, Request
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.server.state import RoundRecord, RunState

R = TypeVar("R")

Replies = Mapping[str, Reply]
"""Site → reply."""
Outcome = tuple[RunState, RoundRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyContext:
    """Context that a reply is checked in: its site, and the run before the exchange."""

    site: str
    """Site that the reply must come from."""
    state: RunState
    """State before the replies of this exchange."""
    config: RunConfig
    samples: int
    """Samples that the site joined with; 0 before it has joined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPhase:
    """Functions of one phase at the server: request, check of a reply, absorption of replies."""

    request: Callable[[RunState, RunConfig, Header], Request]
    """Build the request to every member."""
    why_unusable: Callable[[Any, ReplyContext], str]
    """Return why a reply cannot be used, in plain words; "" where it can."""
    absorb: Callable[[RunState, RunConfig, Replies, RoundRecord], Outcome]
    """Return the state after the usable replies, and the completed record of the exchange."""


def why_too_many(samples: int, most: int) -> str:
    """Return why a count of samples is too large; a site's weight rests on its count."""
    return f"it speaks of {samples} samples, but joined with {most}" if samples > most else ""


def all_finite(numbers: Iterable[float]) -> bool:
    """Return whether no number is NaN or infinite."""
    return all(map(math.isfinite, numbers))


def is_finite(array: np.ndarray) -> bool:
    """Return whether an array holds neither NaN nor infinity; the wire refuses them too."""
    return bool(np.isfinite(array).all())


def replies_of(replies: Replies, cls: type[R]) -> dict[str, R]:
    """Return the replies of one class by site, in order of name."""
    return {site: reply for site, reply in sorted(replies.items()) if isinstance(reply, cls)}


def request_adapter(state: RunState) -> Adapter | None:
    """Return the adapter a request refers to; evaluation uses the one with the base change."""
    if state.adapter is None or state.phase != Phase.EVALUATE.value:
        return state.adapter
    return effective_adapter(state.adapter, state.change)
