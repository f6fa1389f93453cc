"""Cut at the mean score of the clean anchors: CLUES' rule.

τ = (1/|A|) Σ_a s_a. About half of all clean samples lie below the mean of clean anchors, so recall
is about one half: kept as the published rule, not as advice.

Reference:
    Z. Zhao et al., CLUES, NeurIPS 2024, section 3.3, https://arxiv.org/abs/2507.03004
"""

from collections.abc import Mapping

from fedwinnow.curation.datatypes import PublicScores, ScoreSummary, ThresholdDecision
from fedwinnow.strategies.interfaces.threshold import Threshold
from fedwinnow.strategies.maths.threshold_evidence import clean_scores, decide_threshold


def anchor_mean() -> Threshold:
    """Make the rule; see the module."""

    def rule(summaries: Mapping[str, ScoreSummary], public: PublicScores) -> ThresholdDecision:
        return decide_threshold(
            float(clean_scores(public, "anchor_mean").mean()), summaries, public
        )

    return rule
