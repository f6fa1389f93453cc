"""Interface of weightings: from what each site trained on to its share of the merge."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Weighting(Protocol):
    """From what each site trained on to its share of the merge."""

    def __call__(self, counts: Mapping[str, int]) -> Mapping[str, float]:
        """Weights that sum to 1, for the sites with a count above 0.

        Raises:
            EmptySelectionError: every count is 0.
        """
        ...


@runtime_checkable
class AligningWeighting(Weighting, Protocol):
    """A weighting that also sees where each site's update leads the public anchors.

    Called as a plain weighting in warm-up, where updates are not weighed by worth.
    """

    def align(
        self,
        counts: Mapping[str, int],
        alignments: Mapping[str, float],
        before: Mapping[str, float],
    ) -> Mapping[str, float]:
        """Weights that sum to 1.

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
    """What an adapter does to the loss of one category of public anchors."""

    gain: float
    """Mean drop of the loss, nats; above 0 is better."""
    error: float
    """Standard error of that mean over the category's anchors, nats."""


@runtime_checkable
class JudgedWeighting(Weighting, Protocol):
    """A weighting that reads what the other sites measure of each adapter on public anchors.

    Called as a plain weighting in warm-up.
    """

    def rate(
        self, counts: Mapping[str, int], effects: Mapping[str, Mapping[str, Effect]]
    ) -> Mapping[str, float]:
        """Weights that sum to 1.

        Args:
            counts: Site → samples, as for a plain weighting.
            effects: Site → category → what its adapter does there.

        Raises:
            EmptySelectionError: every count is 0.
        """
        ...
