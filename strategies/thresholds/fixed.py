"""A control: a number given in advance, in the scorer's own unit."""

from collections.abc import Mapping

from fedwinnow.curation.nouns import PublicScores, ScoreSummary, ThresholdDecision
from fedwinnow.curation.protocols import Threshold
from fedwinnow.strategies.thresholds.deciding import decide


def fixed(*, value: float) -> Threshold:
    """Make the rule; see the module.

    Args:
        value: The threshold.
    """

    def rule(summaries: Mapping[str, ScoreSummary], public: PublicScores) -> ThresholdDecision:
        return decide(value, summaries, public)

    return rule
