"""What every message is headed with, and how a field stays off the wire."""

from dataclasses import dataclass

PROTOCOL = 1
"""Version of the messages; peers with another one are refused at join."""

UNSENT = {"unsent": True}
"""Metadata of a field that is left out of the wire while it is empty: runs without it know none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a message belongs to."""

    run: str
    """Our own run id, not Flower's."""
    phase: str
    round: int = 0
    arm: str = ""
    """Study arm that the training belongs to; ``""`` outside training."""
    adapter: str = ""
    """SHA-256 of the adapter that the request speaks of; ``""`` if none."""
    protocol: int = PROTOCOL
