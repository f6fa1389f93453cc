"""How a measuring pass reads and batches samples, and how far it is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Told = Callable[[int, int], None]
"""Told of (sample passes done, all of them)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How samples are read and batched."""

    batch_tokens: int
    """Tokens of a pass, padding included; 0 for as many as memory bears."""
    max_length: int
    """Longest sample in tokens."""
    system_prompt: str = ""
    tokens: Path | None = None
    """Folder that keeps tokens (``client/measuring/token_cache.py``); None: none does."""


@dataclass(slots=True, kw_only=True)
class Count:
    """Passes done so far."""

    total: int
    told: Told | None
    done: int = 0

    def add(self, number: int) -> None:
        """Count passes and tell of them."""
        self.done += number
        if self.told is not None:
            self.told(self.done, self.total)
