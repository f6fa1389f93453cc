"""Interface of orderings: the order in which a site trains on its kept samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from fedwinnow.curation.datatypes import Sample, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Order in which a site trains on its kept samples."""

    indices: Int[np.ndarray, " samples"]
    """A permutation of the kept samples' positions."""
    keep_order: bool = False
    """Whether later passes repeat this order instead of shuffling anew."""
    schedule_hint: str | None = None
    """Schedule that suits the order, taken by ``training.schedule = "auto"``; None: no opinion."""
    best_last: bool = False
    """Whether the samples of most worth come last, so that a decaying rate would undo the order."""


@runtime_checkable
class Ordering(Protocol):
    """Rule that puts the kept samples in an order of training."""

    def __call__(self, scores: Scores, seed: int, samples: Sequence[Sample]) -> Order:
        """Order samples; ``scores`` may hold equal values, never NaN.

        It must accept no sample at all: the server, which sees none, calls it so to learn which
        learning-rate schedule the ordering asks for.
        """
        ...


@runtime_checkable
class StagedOrdering(Ordering, Protocol):
    """Ordering in stages; before each stage the site ranks the remaining samples anew.

    It is called with the samples of one stage, best first, and their current scores; NaN where a
    sample no longer has one.
    """

    @property
    def stages(self) -> int:
        """Return the number of stages over all rounds, at least 1."""
        ...

    @property
    def scorer(self) -> str:
        """Return the name of the forward-only scorer that ranks; a site's policy may refuse it."""
        ...
