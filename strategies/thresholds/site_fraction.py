"""Keep the same share of each site's own samples, whatever their quality: a control.

τ_k with |{s ≥ τ_k}| = share · n_k at site k. A silo with bad data keeps as much of it as a silo
with good data; a global threshold is meant to beat that.
"""

from collections.abc import Mapping

from fedwinnow.curation.datatypes import PublicScores, ScoreSummary, ThresholdDecision
from fedwinnow.curation.errors import PluginError
from fedwinnow.curation.scores.histogram import quantile
from fedwinnow.curation.scores.histogram_edges import snap_to_grid
from fedwinnow.strategies.interfaces.threshold import Threshold
from fedwinnow.strategies.maths.threshold_evidence import (
    check_share,
    decide_threshold,
    pool_summaries,
)


def site_fraction(*, share: float = 0.6) -> Threshold:
    """Make the rule; see the module.

    Args:
        share: Share of each site's samples to keep, in (0, 1].

    Raises:
        ValueError: the share is out of range.
    """
    check_share("share", share)

    def rule(summaries: Mapping[str, ScoreSummary], public: PublicScores) -> ThresholdDecision:
        if "" in summaries:
            message = (
                "threshold 'site_fraction': expected each site's own summary, got only their sum; "
                "choose threshold.name = 'keep_fraction'"
            )
            raise PluginError(message)
        whole = decide_threshold(quantile(pool_summaries(summaries), share), summaries, public)
        if "inseparable" in whole.evidence:
            return whole
        own = {
            site: snap_to_grid(quantile(summary, share), summary.edges)
            for site, summary in sorted(summaries.items())
            if summary.total > 0
        }
        return ThresholdDecision(value=whole.value, per_site=own, evidence=whole.evidence)

    return rule
