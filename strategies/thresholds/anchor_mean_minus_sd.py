"""Cut at the mean score of the clean anchors, less some standard deviations.

τ = mean(s_A) − f · sd(s_A), with the sample standard deviation: CLUES' rule, moved to where most
clean samples pass.

Reference:
    Z. Zhao et al., CLUES, NeurIPS 2024, section 3.3 (the mean), https://arxiv.org/abs/2507.03004
"""

import math
from collections.abc import Mapping

from fedwinnow.curation.datatypes import PublicScores, ScoreSummary, ThresholdDecision
from fedwinnow.strategies.interfaces.threshold import Threshold
from fedwinnow.strategies.maths.threshold_evidence import clean_scores, decide_threshold


def anchor_mean_minus_sd(*, factor: float = 1.0) -> Threshold:
    """Make the rule; see the module.

    Args:
        factor: Standard deviations f below the mean, finite.

    Raises:
        ValueError: the factor is not finite.
    """
    if not math.isfinite(factor):
        message = f"factor = {factor} is out of range; allowed: a finite number"
        raise ValueError(message)

    def rule(summaries: Mapping[str, ScoreSummary], public: PublicScores) -> ThresholdDecision:
        clean = clean_scores(public, "anchor_mean_minus_sd", least=2)
        spread = float(clean.std(ddof=1))
        return decide_threshold(float(clean.mean()) - factor * spread, summaries, public)

    return rule
