"""Cut at a number given in advance, in the scorer's own unit: a control.

The number is moved down to the grid of the histogram's edges, as every threshold is; ``asked`` in
the evidence is the number given.
"""

import math
from collections.abc import Mapping

from fedwinnow.curation.datatypes import PublicScores, ScoreSummary, ThresholdDecision
from fedwinnow.strategies.interfaces.threshold import Threshold
from fedwinnow.strategies.maths.threshold_evidence import decide_threshold


def fixed(*, value: float) -> Threshold:
    """Make the rule; see the module.

    Args:
        value: The threshold; ±inf keeps or drops everything.

    Raises:
        ValueError: the value is NaN.
    """
    if math.isnan(value):
        message = "value = nan is out of range; allowed: a number, -inf or inf"
        raise ValueError(message)
    asked = {"asked": float(value)} if math.isfinite(value) else {}

    def rule(summaries: Mapping[str, ScoreSummary], public: PublicScores) -> ThresholdDecision:
        return decide_threshold(float(value), summaries, public, asked)

    return rule
