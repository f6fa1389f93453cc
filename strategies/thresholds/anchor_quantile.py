"""Cut at a low quantile of the clean anchors' scores, which gives up a share of clean samples.

τ = Q_share(s_A), linear between two anchors.

Reference:
    The split-conformal idea of a clean calibration set: V. Vovk et al., Algorithmic Learning in a
    Random World, 2005, chapter 4, https://doi.org/10.1007/b106715
"""

from collections.abc import Mapping

import numpy as np

from fedwinnow.curation.datatypes import PublicScores, ScoreSummary, ThresholdDecision
from fedwinnow.strategies.interfaces.threshold import Threshold
from fedwinnow.strategies.maths.threshold_evidence import (
    check_share,
    clean_scores,
    decide_threshold,
)


def anchor_quantile(*, share: float = 0.1) -> Threshold:
    """Make the rule; see the module.

    Args:
        share: Share of clean anchors below the threshold, in (0, 1].

    Raises:
        ValueError: the share is out of range.
    """
    check_share("share", share)

    def rule(summaries: Mapping[str, ScoreSummary], public: PublicScores) -> ThresholdDecision:
        clean = clean_scores(public, "anchor_quantile")
        return decide_threshold(float(np.quantile(clean, share)), summaries, public)

    return rule
