"""Interface of objectives: the scalar that one training step minimises."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fedwinnow.curation.datatypes import Scores, Trajectory


@runtime_checkable
class Objective(Protocol):
    """What one training step minimises."""

    def __call__(
        self,
        losses: Float[Tensor, " batch"],
        parameters: Mapping[str, Tensor],
        initial: Mapping[str, Tensor],
    ) -> Float[Tensor, ""]:
        """Combine mean token losses (nats, one per sample) and the adapter into one scalar.

        ``parameters`` and ``initial`` map a parameter's name to its value now and at the start of
        the round.
        """
        ...


@runtime_checkable
class WeighingObjective(Objective, Protocol):
    """An objective that lets samples count unequally: their losses come to it already weighed."""

    @property
    def columns(self) -> frozenset[str]:
        """Signal columns that the weights are made of; they are measured beside the scorers'."""
        ...

    @property
    def unit(self) -> str:
        """Unit that the deciding scorer's scores must have; "" for any."""
        ...

    def weights(self, scores: Scores, trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
        """One weight of at least 0 for each kept sample, by custom of mean 1; never leaves."""
        ...
