"""Guard threshold and weights against false histograms and sample counts of single sites.

Cells: with F_i(e) the cumulative shares of site i's histogram at edge e and n_i its samples, rule
``clipped`` replaces, from three sites on,

    F_i(e) ← min(max(F_i(e), F_(2)(e)), F_(n−1)(e)),    n_i ← min(n_i, CAP · median_j n_j),

with F_(k) the k-th smallest: one liar of n is heard no further out than an honest site, and weighs
no more than CAP sites of median size. Rule ``median`` takes F(e) = median_i F_i(e) for every site.

Measured with keep_fraction at five sites of 10 to 50 % dirty samples and sizes 1 to 10, mean rank
error without a liar: sum 0.001, median 0.025, weights capped at the median alone 0.016, clipped
0.013 (at CAP = 1 0.019). The largest shift by a liar who claims any size: 0.90, 0.10, 0.31 and
0.14. With three sites that differ as much, clipping is the median and costs 0.05.

Counts: a site's count is cut to the median kept share, times a setting, of the samples that it
joined with.

Reference:
    D. Yin et al., Byzantine-Robust Distributed Learning, ICML 2018, definition 1 (coordinate-wise
    median), https://arxiv.org/abs/1803.01498
    Differs from the paper: on cumulative shares of histograms, not on gradients; clipping is the
    winsorised form of its definition 2 (trimmed mean), weighted by samples.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float64

from fedwinnow.curation.config.coordinator import GuardsSection
from fedwinnow.curation.datatypes import ScoreSummary
from fedwinnow.curation.protocol.replies import SiteCard

CAP = 2.0
"""Largest weight of a site, in medians of the sites' samples."""
ENOUGH = 3
"""Fewest sites among which one that stands out can be outvoted."""


def clipped_summaries(summaries: Mapping[str, ScoreSummary]) -> Mapping[str, ScoreSummary]:
    """Clip every site's distribution between the second lowest and highest, and cap its samples.

    Fewer than three sites with samples come back as they are.

    Args:
        summaries: Site → histogram, all on the same edges.
    """
    known = {site: one for site, one in sorted(summaries.items()) if one.total > 0}
    if len(known) < ENOUGH:
        return summaries
    whole = np.stack([np.cumsum(one.counts) / one.total for one in known.values()])
    ranked = np.sort(whole, axis=0)
    shares = np.diff(np.clip(whole, ranked[1], ranked[-2]), prepend=0.0, axis=1)
    most = CAP * float(np.median([one.total for one in known.values()]))
    found = dict(summaries)
    for (site, one), cells in zip(known.items(), shares, strict=True):
        weight = min(one.total, most)
        found[site] = ScoreSummary(
            edges=one.edges,
            counts=np.maximum(cells, 0.0) * weight,
            largest_merged=one.largest_merged / one.total * weight,
        )
    return found


def guard_summaries(summaries: Mapping[str, ScoreSummary], rule: str) -> Mapping[str, ScoreSummary]:
    """Return the histograms as ``guards.summaries`` has the threshold hear them."""
    if rule == "median":
        return median_summaries(summaries)
    return summaries if rule == "sum" else clipped_summaries(summaries)


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
