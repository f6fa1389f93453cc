"""Interface of thresholds: from score summaries to one number that every site applies."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from fedwinnow.curation.datatypes import PublicScores, ScoreSummary, ThresholdDecision


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
