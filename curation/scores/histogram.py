"""Build, merge and read histograms of scores on agreed edges.

Cell 0 is the underflow, cell i holds edges[i−1] ≤ s < edges[i], the last cell the overflow. Edges
come from PUBLIC scores by a fixed rule, at every site alike, and thresholds lie on a grid between
them: ``curation/scores/histogram_edges.py``.

A site tells counts of groups of consecutive cells (``curation/scores/cell_groups.py``), which
follow from public numbers, the rounded number of samples and the site's own limits alone; no border
depends on a private score. With n_g scores in group g, smallest cell c and rounding step s,

    told_g = 0 where n_g < c, else s · round(n_g / s),    count of cell i = told_g · q_i / Σ_g q

with q_i the public mass of a cell, Σ_g q that of its group. One other score changes at most two
groups, each by at most s or the least count that is told above 0.

Rank error of a threshold, as a share of all samples: a site's count above it is known but for the
group that holds it and for what rounding hides, at most ⌊s / 2⌋ of a group that is told and the
larger of that and c − 1 of one that is told as 0. ``largest_merged`` is the fullest group of
several cells and the sum of what is hidden, at most all samples, so that Σ_sites of it and the
fullest cell bound the error. It follows from what is told.

Reference:
    Small cells and rounding: threshold rule and rounding of disclosure control, A. Hundepool et
    al., Statistical Disclosure Control, 2012, chapter 5, https://doi.org/10.1002/9781118348239
"""

import math
from collections.abc import Iterable

import numpy as np

from fedwinnow.curation.datatypes import Scores, ScoreSummary
from fedwinnow.curation.errors import EmptySummaryError, NonFiniteError, ProtocolError
from fedwinnow.curation.scores.cell_groups import (
    PublicRowScores,
    cell_shares,
    group_cells,
    number_of_groups,
    public_mass,
)
from fedwinnow.curation.scores.histogram_edges import Edges
from fedwinnow.curation.scores.rounded_counts import round_count


def summarise(
    scores: Scores,
    edges: Edges,
    *,
    smallest_cell: int,
    step: int = 1,
    samples: int | None = None,
    most_groups: int | None = None,
    public_scores: PublicRowScores | None = None,
) -> ScoreSummary:
    """Build the histogram of a site's scores; NaN (no score) is left out and counted elsewhere.

    Args:
        scores: Scores of one site's samples.
        edges: Strictly ascending, in the scores' unit.
        smallest_cell: Groups of cells with fewer samples are told as 0, at least 1.
        step: Counts are told in multiples of this, at least 1.
        samples: The site's rounded number of samples, as it joined; None takes the scores'.
        most_groups: Most groups of cells, at least 1; None sets no bound.
        public_scores: Scores of the public rows, for the mass of the cells; None: all are alike.

    Raises:
        NonFiniteError: a score is infinite.
        ProtocolError: ``smallest_cell`` is below 1, or the edges do not ascend.
    """
    if min(smallest_cell, step) < 1 or len(edges) < 1 or not (np.diff(edges) > 0).all():
        message = (
            "score summary: expected summary.smallest_cell and round_counts_to of at least 1 and "
            f"strictly ascending edges, got {smallest_cell}, {step} and {len(edges)} edges; derive "
            "edges from public scores"
        )
        raise ProtocolError(message)
    known = scores[~np.isnan(scores)].astype(np.float64)
    if not np.isfinite(known).all():
        message = (
            f"score summary: expected finite scores, got {int(np.isinf(known).sum())} infinities "
            f"in {len(scores)} scores; a scorer must return finite numbers, or NaN for no score"
        )
        raise NonFiniteError(message)
    cells = np.searchsorted(edges, known, side="right")
    mass = public_mass(edges, public_scores)
    joined = round_count(len(scores), step) if samples is None else samples
    number = number_of_groups(
        len(edges) - 1,
        samples=joined,
        smallest_cell=smallest_cell,
        step=step,
        most=len(mass) if most_groups is None else most_groups,
    )
    groups = group_cells(mass, number)
    held = np.bincount(groups[cells], minlength=int(groups[-1]) + 1).tolist()
    told = np.array(
        [round_count(n, step) if n >= smallest_cell else 0 for n in held],
        dtype=np.float64,
    )
    merged = float(told[np.bincount(groups) > 1].max(initial=0.0))
    hidden = float(np.where(told > 0, step // 2, max(step // 2, smallest_cell - 1)).sum())
    return ScoreSummary(
        edges=edges,
        counts=told[groups] * cell_shares(mass, groups),
        largest_merged=min(merged + hidden, max(float(told.sum()), float(joined + step // 2))),
    )


def empty_summary(edges: Edges) -> ScoreSummary:
    """Return the summary of no sample: merging it changes nothing."""
    return ScoreSummary(edges=edges, counts=np.zeros(len(edges) + 1))


def merge_summaries(summaries: Iterable[ScoreSummary]) -> ScoreSummary:
    """Add up summaries on the same edges, whatever their order.

    Sums are exact for whole counts; fractions, which spread runs hold, round once.

    Raises:
        EmptySummaryError: there is none.
        ProtocolError: edges differ.
    """
    parts = list(summaries)
    if not parts:
        message = (
            "merged score summary: expected at least one site's, got none; "
            "check that sites hold scored samples"
        )
        raise EmptySummaryError(message)
    edges = parts[0].edges
    if any(not np.array_equal(part.edges, edges) for part in parts):
        message = (
            "merged score summary: expected the same edges from every site, got different ones "
            f"among {len(parts)} summaries; give all sites the same anchors and versions"
        )
        raise ProtocolError(message)
    columns = zip(*(part.counts.tolist() for part in parts), strict=True)
    return ScoreSummary(
        edges=edges,
        counts=np.array([math.fsum(column) for column in columns], dtype=np.float64),
        largest_merged=math.fsum(part.largest_merged for part in parts),
    )


def quantile(summary: ScoreSummary, share: float) -> float:
    """Return the score with a share of all samples at or above it, linear inside a cell.

    Args:
        summary: The merged histogram of all sites.
        share: Share of all samples, in [0, 1].

    Returns:
        A score inside the cell, never its upper edge: a cell of one value gives that value. −inf
        where the share reaches into the underflow, the last edge where it lies in the overflow.

    Raises:
        EmptySummaryError: the summary holds no sample.
    """
    if summary.total <= 0:
        message = (
            "quantile of the score summary: expected samples, got 0; "
            "check that sites hold scored samples"
        )
        raise EmptySummaryError(message)
    wanted = share * summary.total
    above = float(summary.counts[-1])
    if wanted <= above:
        return float(summary.edges[-1])
    for cell in range(len(summary.counts) - 2, 0, -1):
        held = float(summary.counts[cell])
        low, high = float(summary.edges[cell - 1]), float(summary.edges[cell])
        if held > 0 and above + held >= wanted:
            found = high - (high - low) * (wanted - above) / held
            return max(low, min(found, math.nextafter(high, low)))
        above += held
    return float("-inf") if summary.counts[0] > 0 else float(summary.edges[0])


def share_above(summary: ScoreSummary, threshold: float) -> float:
    """Return the share of the samples at or above a threshold, linear inside a cell, in [0, 1]."""
    if summary.total <= 0 or threshold == float("-inf"):
        return 1.0
    if threshold > summary.edges[-1]:
        return 0.0
    cell = int(np.searchsorted(summary.edges, threshold, side="right"))
    above = float(summary.counts[cell + 1 :].sum())
    if cell == 0:
        return (above + float(summary.counts[0])) / summary.total
    if cell == len(summary.edges):
        return float(summary.counts[-1]) / summary.total
    low, high = summary.edges[cell - 1], summary.edges[cell]
    return (above + float(summary.counts[cell]) * float((high - threshold) / (high - low))) / (
        summary.total
    )


def rank_error_bound(summary: ScoreSummary, threshold: float | None = None) -> float:
    """Return a bound of a threshold's rank error, as a share of all samples; see the module.

    Args:
        summary: The merged histogram.
        threshold: Where the cut lies: only the cells that it touches can be misjudged. None bounds
            every possible cut.

    Returns:
        A share in [0, 1].
    """
    if summary.total <= 0:
        return 0.0
    counts = summary.counts
    if threshold is not None:
        low = int(np.searchsorted(summary.edges, threshold, side="left"))
        high = int(np.searchsorted(summary.edges, threshold, side="right"))
        counts = counts[low : high + 1]
    return min(1.0, (float(counts.max()) + summary.largest_merged) / summary.total)
