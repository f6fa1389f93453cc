"""Guard threshold and weights against false histograms and sample counts of single sites.

Cells: with F_i the cumulative shares of site i's histogram, the robust distribution is
F(e) = median_i F_i(e), the same for every site. One liar of n moves it no further than the values
of the honest sites next to the middle. Counts: a site's count is cut to the median kept share,
times a setting, of the samples that it joined with.

Reference:
    D. Yin et al., Byzantine-Robust Distributed Learning, ICML 2018, definition 1 (coordinate-wise
    median), https://arxiv.org/abs/1803.01498
    Differs from the paper: on cumulative shares of histograms, not on gradients.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float64

from fedwinnow.curation.config.coordinator import GuardsSection
from fedwinnow.curation.datatypes import ScoreSummary
from fedwinnow.curation.protocol.replies import SiteCard


def median_summaries(summaries: Mapping[str, ScoreSummary]) -> Mapping[str, ScoreSummary]:
    """Replace every site's histogram by the median distribution, scaled to the site's samples.

    Sites without a sample do not count and stay as they are. A site with unusual data is outvoted
    just as a liar is.

    Args:
        summaries: Site → histogram, all on the same edges.
    """
    known = {site: one for site, one in sorted(summaries.items()) if one.total > 0}
    if not known:
        return summaries
    whole = [np.cumsum(one.counts) / one.total for one in known.values()]
    shares: Float64[np.ndarray, " cells"] = np.diff(np.median(np.stack(whole), axis=0), prepend=0.0)
    merged = max(one.largest_merged / one.total for one in known.values())
    return {
        site: ScoreSummary(
            edges=one.edges, counts=shares * one.total, largest_merged=merged * one.total
        )
        if site in known
        else one
        for site, one in summaries.items()
    }


def bound_reported_counts(
    counts: Mapping[str, int], members: Iterable[SiteCard], guards: GuardsSection
) -> tuple[Mapping[str, int], Mapping[str, str]]:
    """Return counts cut to the run's bound on kept shares, if it has one, and site → reason."""
    if guards.kept_share == 0:
        return counts, {}
    sizes = {card.site: card.samples for card in members}
    return bound_counts(counts, sizes, most=guards.kept_share)


def bound_counts(
    counts: Mapping[str, int], sizes: Mapping[str, int], *, most: float
) -> tuple[Mapping[str, int], Mapping[str, str]]:
    """Cut counts above ``most`` times the median kept share.

    The median is the lower one, so that with two sites the smaller share sets the limit; sites that
    kept nothing do not count.

    Args:
        counts: Site → samples that it trained on, as it reported them.
        sizes: Site → samples that it joined with, above 0.
        most: Largest kept share, in medians, above 0.

    Returns:
        The counts, of which none is cut below 1, and site → reason for those that were cut.
    """
    shares = sorted(counts[site] / sizes[site] for site in counts if counts[site] > 0)
    if not shares:
        return counts, {}
    limit = most * shares[(len(shares) - 1) // 2]
    kept, words = dict(counts), {}
    for site, count in sorted(counts.items()):
        allowed = max(1, int(limit * sizes[site]))
        if count > allowed:
            kept[site] = allowed
            words[site] = (
                f"its {count} samples, {count / sizes[site]:.0%} of its own, count as {allowed}: "
                f"{most:g} times the median kept share"
            )
    return kept, words
