"""Interface of threshold rules, which turn score summaries into one number for every site."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from fedwinnow.curation.datatypes import PublicScores, ScoreSummary, ThresholdDecision


@runtime_checkable
class Threshold(Protocol):
    """Rule that turns score summaries into one threshold that every site applies."""

    def __call__(
        self, summaries: Mapping[str, ScoreSummary], public: PublicScores
    ) -> ThresholdDecision:
        """Decide the threshold from the summaries and the public scores.

        ``summaries`` maps site to summary; it has one entry ``""`` where only sums are seen.

        Raises:
            EmptySummaryError: no site contributed a score and the rule needs one.
        """
        ...
