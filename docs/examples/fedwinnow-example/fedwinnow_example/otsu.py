"""A threshold: the edge that best parts the summed histogram into two heaps.

With w the share of samples below an edge and μ₀, μ₁ the mean scores of both sides, the edge with
the largest w (1 − w) (μ₀ − μ₁)², the variance between the two.

Reference:
    N. Otsu, A Threshold Selection Method from Gray-Level Histograms, IEEE Transactions on Systems,
    Man, and Cybernetics 9, 1979, equation 18, https://doi.org/10.1109/TSMC.1979.4310076
"""

from collections.abc import Callable, Mapping

import numpy as np

from fedwinnow.curation.datatypes import PublicScores, ScoreSummary, ThresholdDecision
from fedwinnow.strategies.maths.threshold_evidence import decide_threshold, pool_summaries


def otsu(*, least: float = 0.1) -> Callable[..., ThresholdDecision]:
    """Make the rule.

    Args:
        least: Smallest share of all samples to keep, in (0, 1): higher edges are not looked at.

    Raises:
        ValueError: ``least`` is out of range.
    """
    if not 0 < least < 1:
        message = f"least = {least} is out of range; allowed: in (0, 1)"
        raise ValueError(message)

    def rule(summaries: Mapping[str, ScoreSummary], public: PublicScores) -> ThresholdDecision:
        total = pool_summaries(summaries)  # an error by name where no site has a sample
        edges, counts = total.edges, total.counts
        middles = np.concatenate([edges[:1], (edges[1:] + edges[:-1]) / 2, edges[-1:]])
        below = np.cumsum(counts)[:-1] / total.total
        mass = np.cumsum(counts * middles)[:-1] / total.total
        whole = (counts * middles).sum() / total.total
        with np.errstate(divide="ignore", invalid="ignore"):
            between = (whole * below - mass) ** 2 / (below * (1 - below))
        between[(below <= 0) | (1 - below < least)] = -1.0
        best = int(np.argmax(between))
        parted = float(max(0.0, between[best]))
        value = edges[best] if between[best] >= 0 else -np.inf
        # decide() puts the number on the grid that sites accept, and adds what any rule reports
        return decide_threshold(float(value), summaries, public, {"between_variance": parted})

    return rule
