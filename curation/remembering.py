"""Merging rules that remember: what they carry from one round to the next is part of the state.

A rule is made anew for every round, so that a run resumes from what is committed and from nothing
else. Server-side optimisers (FedAdam and its kin) need their moments of the last round: such a rule
gets them and gives them back, and the server commits them with the adapter, after every round. They
start empty in the first round of the warm-up and of each study arm.
"""

from collections.abc import Mapping
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Adapter
from fedwinnow.strategies.interfaces.merging import Merged, Merging

Memory: TypeAlias = Mapping[str, Float[np.ndarray, "..."]]
"""Name → float64 array; empty before the first round. Finite, as large as the rule needs."""


@runtime_checkable
class RememberingMerging(Merging, Protocol):
    """A merging rule with a state between rounds; called alone, it merges as in a first round."""

    def remember(
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


def merge_remembering(
    merging: Merging,
    adapters: Mapping[str, Adapter],
    weights: Mapping[str, float],
    previous: Adapter,
    memory: Memory,
) -> tuple[Merged, Memory]:
    """Merge by any rule; the memory of one that does not remember is empty."""
    if isinstance(merging, RememberingMerging):
        return merging.remember(adapters, weights, previous, memory)
    return merging(adapters, weights, previous), {}
