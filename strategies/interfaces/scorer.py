"""Interface of scorers: from signals to one number per sample."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from fedwinnow.curation.datatypes import Fitted, PublicRows, Scores, Trajectory


@runtime_checkable
class Scorer(Protocol):
    """From signals to one number per sample; higher is better."""

    @property
    def columns(self) -> frozenset[str]:
        """Signal columns that it reads; the measuring pass computes only these."""
        ...

    @property
    def unit(self) -> str:
        """Unit of a score, for axes and tables: ``"nats"``, ``"probability"`` and so on."""
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
    """A scorer that leaves some samples to a person of the silo, and does not train on them."""

    def queue(self, trajectory: Trajectory, fitted: Fitted) -> Bool[np.ndarray, " samples"]:
        """Which samples are for a person to decide, if they pass the threshold; never leaves."""
        ...
