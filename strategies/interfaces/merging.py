"""What each of the six kinds of plug-in must be able to do.

A plug-in is a factory whose keyword-only arguments are its settings and whose return value
satisfies one of the Protocols below. Built-ins stand in ``strategies/registry.py``; other people's
come through entry points (``fedwinnow.scorer``, ``fedwinnow.threshold``, …).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedwinnow.curation.datatypes import (
    Adapter,
    Fitted,
    PublicRows,
    PublicScores,
    Sample,
    Scores,
    ScoreSummary,
    SparseAdapter,
    ThresholdDecision,
    Trajectory,
)


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


@runtime_checkable
class Threshold(Protocol):
    """From summaries to one number that every site applies."""

    def __call__(
        self, summaries: Mapping[str, ScoreSummary], public: PublicScores
    ) -> ThresholdDecision:
        """Decide; ``summaries`` maps site to summary (one entry ``""`` where only sums are seen).

        Raises:
            EmptySummaryError: no site contributed a score and the rule needs one.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The order in which a site trains on what it kept."""

    indices: Int[np.ndarray, " samples"]
    """A permutation of the kept samples' positions."""
    keep_order: bool = False
    """Whether later passes repeat this order instead of shuffling anew."""
    schedule_hint: str | None = None
    """Schedule that suits the order, taken by ``training.schedule = "auto"``; None: no opinion."""
    best_last: bool = False
    """Whether the samples of most worth come last, so that a decaying rate would undo the order."""


@runtime_checkable
class Ordering(Protocol):
    """From the kept samples and their scores to an order of training."""

    def __call__(self, scores: Scores, seed: int, samples: Sequence[Sample]) -> Order:
        """Order samples; ``scores`` may hold equal values, never NaN.

        Also for no sample at all: the server, which sees none, reads from that order which
        learning-rate schedule the ordering asks for.
        """
        ...


@runtime_checkable
class StagedOrdering(Ordering, Protocol):
    """An ordering in stages: before each, the site ranks the samples that are left anew.

    It is then called with the samples of a stage, best first, and their scores of that moment; NaN
    where a sample has none any more.
    """

    @property
    def stages(self) -> int:
        """Stages over all rounds, at least 1."""
        ...

    @property
    def scorer(self) -> str:
        """Name of the forward-only scorer that ranks; a site's policy may refuse it."""
        ...


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


@runtime_checkable
class Weighting(Protocol):
    """From what each site trained on to its share of the merge."""

    def __call__(self, counts: Mapping[str, int]) -> Mapping[str, float]:
        """Weights that sum to 1, for the sites with a count above 0.

        Raises:
            EmptySelectionError: every count is 0.
        """
        ...


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
