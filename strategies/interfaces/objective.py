"""Interface of objectives: the scalar that one training step minimises."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fedwinnow.curation.datatypes import Scores, Trajectory


@runtime_checkable
class Objective(Protocol):
    """Function of the batch losses and the adapter that one training step minimises."""

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
    """Objective with a weight for each sample; the losses it gets are already weighted."""

    @property
    def columns(self) -> frozenset[str]:
        """Return the signal columns that the weights need; they are measured with the scorers'."""
        ...

    @property
    def unit(self) -> str:
        """Return the unit that the deciding scorer's scores must have; "" for any."""
        ...

    def weights(self, scores: Scores, trajectory: Trajectory) -> Float[np.ndarray, " samples"]:
        """Return a weight of at least 0 for each kept sample, usually of mean 1; never leaves."""
        ...
