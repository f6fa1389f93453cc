"""Mean score of the clean anchors, less some standard deviations.

τ = mean(s_A) − f · sd(s_A): CLUES' rule moved to where most clean samples pass.

Reference:
    Z. Zhao et al., CLUES, NeurIPS 2024, section 3.3 (the mean), https://arxiv.org/abs/2507.03004
"""

from collections.abc import Mapping

from fedwinnow.curation.nouns import PublicScores, ScoreSummary, ThresholdDecision
from fedwinnow.curation.protocols import Threshold
from fedwinnow.strategies.thresholds.deciding import clean_scores, decide


def anchor_mean_minus_sd(*, factor: float = 1.0) -> Threshold:
    """Make the rule; see the module.

    Args:
        factor: Standard deviations f below the mean.
    """

    def rule(summaries: Mapping[str, ScoreSummary], public: PublicScores) -> ThresholdDecision:
        clean = clean_scores(public, "anchor_mean_minus_sd")
        return decide(float(clean.mean() - factor * clean.std()), summaries, public)

    return rule
