"""Header of every message, and the marker of fields that are omitted while empty."""

from dataclasses import dataclass

PROTOCOL = 1
"""Version of the messages; peers with another one are refused at join."""

UNSENT = {"unsent": True}
"""Metadata of a field that is not sent while it is empty: runs without it never see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Header of a message: the run, phase, round, study arm and adapter that it belongs to."""

    run: str
    """Our own run id, not Flower's."""
    phase: str
    round: int = 0
    arm: str = ""
    """Study arm that the training belongs to; ``""`` outside training."""
    adapter: str = ""
    """SHA-256 of the adapter that the request refers to; ``""`` if none."""
    protocol: int = PROTOCOL
