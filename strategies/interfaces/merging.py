"""Interface of merging rules: from the sites' adapters of a round to one.

A rule is made anew for every round, so that a run resumes from what is committed and from nothing
else. Server-side optimisers (FedAdam and its kin) need their moments of the last round: a
:class:`StatefulMerging` gets them and gives them back, and the server commits them with the
adapter, after every round. They start empty in the first round of warm-up and of each study arm.
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
    """A merged adapter and what the merge cost."""

    adapter: Adapter
    report: Mapping[str, float] = field(default_factory=dict)
    """``discarded_energy`` (share of ‖ΔW*‖² lost, in [0, 1]), ``rank``, … by name."""
    change: Adapter | None = None
    """What every site adds to its base for good, as factors of the modules that change, before it
    uses ``adapter``; its ``base`` is the base before. None: the base stays."""


@runtime_checkable
class Merging(Protocol):
    """From the sites' adapters to one."""

    def __call__(
        self, adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
    ) -> Merged:
        """Merge; sites in sorted order of name, so that order of arrival changes nothing.

        Raises:
            IncompatibleAdapterError: bases, modules or shapes differ.
            NonFiniteError: a factor holds a NaN or an infinity.
        """
        ...


@runtime_checkable
class FactorMerging(Merging, Protocol):
    """A merging that is exact because the sites leave one factor as they got it."""

    def trains(self, number: int) -> frozenset[Literal["a", "b"]]:
        """Which factors the sites train in training round ``number``, counted from 0."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseMerged:
    """A merged sparse difference and what there is to say of it."""

    adapter: SparseAdapter
    report: Mapping[str, float] = field(default_factory=dict)
    """``entries``, ``density``, ``overlap``, … by name."""


@runtime_checkable
class SparseMerging(Protocol):
    """From the sites' sparse differences to one; dense factors are refused by name."""

    @property
    def density(self) -> float:
        """Largest share of a model's entries that a site may change, in (0, 1]."""
        ...

    def __call__(
        self,
        adapters: Mapping[str, SparseAdapter],
        weights: Mapping[str, float],
        previous: SparseAdapter,
    ) -> SparseMerged:
        """Merge; sites in sorted order of name.

        Raises:
            IncompatibleAdapterError: no sparse adapter; bases or shapes differ; too many entries.
            NonFiniteError: a value is NaN or infinite.
        """
        ...


Memory: TypeAlias = Mapping[str, Float[np.ndarray, "..."]]
"""Name → float64 array; empty before the first round. Finite, as large as the rule needs."""


@runtime_checkable
class StatefulMerging(Merging, Protocol):
    """A merging rule with a state between rounds; called alone, it merges as in a first round."""

    def merge_with_state(
        self,
        adapters: Mapping[str, Adapter],
        weights: Mapping[str, float],
        previous: Adapter,
        memory: Memory,
    ) -> tuple[Merged, Memory]:
        """Merge, and give what the next round needs; ``memory`` itself is not changed.

        Raises:
            IncompatibleAdapterError: see :class:`Merging`.
            NonFiniteError: a factor, or what is remembered, holds a NaN or an infinity.
        """
        ...


def merge_with_memory(
    merging: Merging,
    adapters: Mapping[str, Adapter],
    weights: Mapping[str, float],
    previous: Adapter,
    memory: Memory,
) -> tuple[Merged, Memory]:
    """Merge by any rule; the memory of one that does not remember is empty."""
    if isinstance(merging, StatefulMerging):
        return merging.merge_with_state(adapters, weights, previous, memory)
    return merging(adapters, weights, previous), {}
