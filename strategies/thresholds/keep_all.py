"""Keep every sample that has a score, with threshold −∞: the control that selection must beat."""

from collections.abc import Mapping

from fedwinnow.curation.datatypes import PublicScores, ScoreSummary, ThresholdDecision
from fedwinnow.strategies.interfaces.threshold import Threshold
from fedwinnow.strategies.maths.threshold_evidence import decide_threshold


def keep_all() -> Threshold:
    """Make the rule; see the module."""

    def rule(summaries: Mapping[str, ScoreSummary], public: PublicScores) -> ThresholdDecision:
        return decide_threshold(float("-inf"), summaries, public)

    return rule
