"""Interface of scorers, which turn signals into one number per sample."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from fedwinnow.curation.datatypes import Fitted, PublicRows, Scores, Trajectory


@runtime_checkable
class Scorer(Protocol):
    """Rule that turns signals into one score per sample; higher is better."""

    @property
    def columns(self) -> frozenset[str]:
        """Return the signal columns that it reads; the measuring pass computes only these."""
        ...

    @property
    def unit(self) -> str:
        """Return the unit of a score, for axes and tables: ``"nats"``, ``"probability"``, …."""
        ...

    def fit(self, public: PublicRows) -> Fitted:
        """Fit on the agreed public rows; a scorer without parameters returns their scores only.

        Deterministic: every site gets the same result from the same rows.
        """
        ...

    def score(self, trajectory: Trajectory, fitted: Fitted) -> Scores:
        """Score every row of the trajectory; rows whose status is not OK get NaN."""
        ...


@runtime_checkable
class QueueingScorer(Scorer, Protocol):
    """Scorer that queues some samples for a person of the silo; the site does not train on them."""

    def queue(self, trajectory: Trajectory, fitted: Fitted) -> Bool[np.ndarray, " samples"]:
        """Return a mask of samples for a person, if they pass the threshold; it never leaves."""
        ...
