"""Interface of weightings, which give each site its share of the merge."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Weighting(Protocol):
    """Rule that turns sample counts into each site's share of the merge."""

    def __call__(self, counts: Mapping[str, int]) -> Mapping[str, float]:
        """Return weights that sum to 1, for the sites with a count above 0.

        Raises:
            EmptySelectionError: every count is 0.
        """
        ...


@runtime_checkable
class AligningWeighting(Weighting, Protocol):
    """Weighting that also reads how each site's update changes the loss of the public anchors.

    In warm-up it is called as a plain weighting: updates are not weighed by worth there.
    """

    def align(
        self,
        counts: Mapping[str, int],
        alignments: Mapping[str, float],
        before: Mapping[str, float],
    ) -> Mapping[str, float]:
        """Return weights that sum to 1.

        Args:
            counts: Site → samples, as for a plain weighting.
            alignments: Site → −⟨∇L, θ_i − θ⟩: by how much its update lowers the mean loss of the
                reference anchors to first order, nats.
            before: Site → its weight in the round before; empty in the first.

        Raises:
            EmptySelectionError: every count is 0.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Effect of an adapter on the loss of one category of public anchors."""

    gain: float
    """Mean drop of the loss, nats; above 0 is better."""
    error: float
    """Standard error of that mean over the category's anchors, nats."""


@runtime_checkable
class JudgedWeighting(Weighting, Protocol):
    """Weighting that also reads what other sites measure of each adapter on public anchors.

    In warm-up it is called as a plain weighting.
    """

    def rate(
        self, counts: Mapping[str, int], effects: Mapping[str, Mapping[str, Effect]]
    ) -> Mapping[str, float]:
        """Return weights that sum to 1.

        Args:
            counts: Site → samples, as for a plain weighting.
            effects: Site → category → effect of its adapter there.

        Raises:
            EmptySelectionError: every count is 0.
        """
        ...
