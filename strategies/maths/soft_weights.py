"""Average weighted losses, and scale weights to mean 1, for objectives with soft weights."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fedwinnow.curation.datatypes import Scores, Trajectory
from fedwinnow.curation.errors import EmptySelectionError

Weights = Float[np.ndarray, " samples"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftMean:
    """Objective that is the mean of weight · loss; the losses it gets are already weighted."""

    columns: frozenset[str]
    unit: str
    rule: Callable[[Scores, Trajectory], Weights]

    def __call__(
        self,
        losses: Float[Tensor, " batch"],
        parameters: Mapping[str, Tensor],  # noqa: ARG002 - the adapter does not enter
        initial: Mapping[str, Tensor],  # noqa: ARG002 - likewise
    ) -> Float[Tensor, ""]:
        """Return L = (1 / n) Σ_i w_i ℓ_i."""
        return losses.mean()

    def weights(self, scores: Scores, trajectory: Trajectory) -> Weights:
        """Return the rule's weights."""
        return self.rule(scores, trajectory)


def fill_missing(values: Weights) -> Weights:
    """Replace NaN by the mean of the others, 1 where there is no other: unknown is average."""
    known = ~np.isnan(values)
    mean = math.fsum(values[known].tolist()) / known.sum() if known.any() else 1.0
    return np.where(known, values, mean)


def normalise_to_mean_one(values: Weights) -> Weights:
    """Return weights of mean 1 in proportion to the values; equal values give 1 exactly.

    Raises:
        EmptySelectionError: every value is 0.
    """
    if len(values) == 0 or values.min() == values.max() != 0:
        return np.ones(len(values))
    mean = math.fsum(values.tolist()) / len(values)
    if mean == 0:
        message = (
            f"training.objective: all of {len(values)} kept samples weigh 0; lower the threshold, "
            "raise the objective's tau, or use objective sft"
        )
        raise EmptySelectionError(message)
    return values / mean
