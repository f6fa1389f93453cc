"""Interface of merging rules, which merge the sites' adapters of a round into one.

A rule is made anew for every round, so that a run resumes from what is committed and from nothing
else. Server-side optimisers (FedAdam and its kin) need their moments of the last round: a
:class:`StatefulMerging` takes and returns them, and the server commits them with the adapter after
every round. The moments start empty in the first round of warm-up and of each study arm.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import (
    Adapter,
    SparseAdapter,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """Merged adapter, report of the merge, and change of the base."""

    adapter: Adapter
    report: Mapping[str, float] = field(default_factory=dict)
    """``discarded_energy`` (share of ‖ΔW*‖² lost, in [0, 1]), ``rank``, … by name."""
    change: Adapter | None = None
    """Change that every site adds to its base for good before it uses ``adapter``: factors of the
    modules that change. The change's ``base`` is the base before. None: the base stays."""


@runtime_checkable
class Merging(Protocol):
    """Rule that merges the sites' adapters into one."""

    def __call__(
        self, adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
    ) -> Merged:
        """Merge in sorted order of site name, so that the order of arrival changes nothing.

        Raises:
            IncompatibleAdapterError: bases, modules or shapes differ.
            NonFiniteError: a factor holds a NaN or an infinity.
        """
        ...


@runtime_checkable
class FactorMerging(Merging, Protocol):
    """Merging rule that is exact because the sites leave one factor as it was sent."""

    def trains(self, number: int) -> frozenset[Literal["a", "b"]]:
        """Return the factors that the sites train in training round ``number``, counted from 0."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseMerged:
    """Merged sparse difference and report of the merge."""

    adapter: SparseAdapter
    report: Mapping[str, float] = field(default_factory=dict)
    """``entries``, ``density``, ``overlap``, … by name."""


@runtime_checkable
class SparseMerging(Protocol):
    """Rule that merges the sites' sparse differences into one; it refuses dense factors by name."""

    @property
    def density(self) -> float:
        """Return the largest share of a model's entries that a site may change, in (0, 1]."""
        ...

    def __call__(
        self,
        adapters: Mapping[str, SparseAdapter],
        weights: Mapping[str, float],
        previous: SparseAdapter,
    ) -> SparseMerged:
        """Merge in sorted order of site name.

        Raises:
            IncompatibleAdapterError: an adapter is not sparse; bases or shapes differ; too many
                entries.
            NonFiniteError: a value is NaN or infinite.
        """
        ...


Memory: TypeAlias = Mapping[str, Float[np.ndarray, "..."]]
"""Name → float64 array; empty before the first round. Finite, as large as the rule needs."""


@runtime_checkable
class StatefulMerging(Merging, Protocol):
    """Merging rule with state between rounds; a plain call merges as in a first round."""

    def merge_with_state(
        self,
        adapters: Mapping[str, Adapter],
        weights: Mapping[str, float],
        previous: Adapter,
        memory: Memory,
    ) -> tuple[Merged, Memory]:
        """Merge, and return the memory for the next round; ``memory`` itself is not changed.

        Raises:
            IncompatibleAdapterError: see :class:`Merging`.
            NonFiniteError: a factor or the memory holds a NaN or an infinity.
        """
        ...


def merge_with_memory(
    merging: Merging,
    adapters: Mapping[str, Adapter],
    weights: Mapping[str, float],
    previous: Adapter,
    memory: Memory,
) -> tuple[Merged, Memory]:
    """Merge by any rule; return an empty memory where the rule keeps no state."""
    if isinstance(merging, StatefulMerging):
        return merging.merge_with_state(adapters, weights, previous, memory)
    return merging(adapters, weights, previous), {}
