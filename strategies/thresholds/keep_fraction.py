"""Keep a share of all samples over all sites: cut at a quantile of the merged histogram.

τ with |{s ≥ τ}| = share · N, linear inside a cell. Sites with better data keep more.

Reference:
    R. Hyndman, Y. Fan, Sample Quantiles in Statistical Packages, 1996, https://doi.org/10.1080/00031305.1996.10473566
"""

from collections.abc import Mapping

from fedwinnow.curation.datatypes import PublicScores, ScoreSummary, ThresholdDecision
from fedwinnow.curation.scores.histogram import quantile
from fedwinnow.strategies.interfaces.threshold import Threshold
from fedwinnow.strategies.maths.threshold_evidence import (
    check_share,
    decide_threshold,
    pool_summaries,
)


def keep_fraction(*, share: float = 0.6) -> Threshold:
    """Make the rule; see the module.

    Args:
        share: Share of all samples to keep, in (0, 1].

    Raises:
        ValueError: the share is out of range.
    """
    check_share("share", share)

    def rule(summaries: Mapping[str, ScoreSummary], public: PublicScores) -> ThresholdDecision:
        value = quantile(pool_summaries(summaries), share)
        return decide_threshold(value, summaries, public)

    return rule
