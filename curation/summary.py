"""Histograms of scores on agreed edges: what a site may say of its scores, and what it is good for.

Cell 0 is the underflow, cell i holds edges[i−1] ≤ s < edges[i], the last cell the overflow. Cells
that hold fewer samples than a site allows are merged with their neighbours, and a run's sum is
spread evenly over its cells, so that nothing but sums of runs is visible.

Edges come from PUBLIC scores by a fixed rule, at every site alike. A threshold lies on a grid that
divides every cell in ``PARTS``: fine enough for a rank error below 0.1 % with 256 cells, coarse
enough that a threshold cannot be steered between two samples.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.errors import EmptySummaryError, NonFiniteError, ProtocolError
from fedwinnow.curation.nouns import Scores, ScoreSummary

PARTS = 64
"""Grid points of a threshold in each cell."""
_TAIL = 0.01
_MARGIN = 0.5
_LEAST_PROBABILITY = 1e-6

Edges = Float[np.ndarray, " edges"]


def summarise(scores: Scores, edges: Edges, *, smallest_cell: int) -> ScoreSummary:
    """Histogram of the scores; NaN scores are left out.

    Args:
        scores: Of one site's samples.
        edges: Strictly ascending.
        smallest_cell: Fewest samples of a visible run of cells, at least 1.

    Raises:
        NonFiniteError: a score is infinite.
    """
    known = scores[~np.isnan(scores)]
    if not np.isfinite(known).all():
        message = "scores hold an infinity; a scorer must return finite numbers or NaN for no score"
        raise NonFiniteError(message)
    cells = np.searchsorted(edges, known, side="right")
    exact = np.bincount(cells, minlength=len(edges) + 1)
    counts = np.zeros(len(exact), dtype=np.float64)
    runs = _runs(exact.tolist(), smallest_cell)
    largest = 0.0
    for start, stop in runs:
        held = float(exact[start:stop].sum())
        counts[start:stop] = held / (stop - start)
        if stop - start > 1:
            largest = max(largest, held)
    return ScoreSummary(edges=edges, counts=counts, largest_merged=largest)


def merge(summaries: Iterable[ScoreSummary]) -> ScoreSummary:
    """Sum of summaries on the same edges; order changes nothing but rounding.

    Raises:
        EmptySummaryError: there is none.
        ProtocolError: edges differ.
    """
    parts = list(summaries)
    if not parts:
        message = "no site sent a score summary; check that sites hold scored samples"
        raise EmptySummaryError(message)
    edges = parts[0].edges
    if any(not np.array_equal(part.edges, edges) for part in parts):
        message = "score summaries lie on different edges; all sites must derive them alike"
        raise ProtocolError(message)
    return ScoreSummary(
        edges=edges,
        counts=np.sum([part.counts for part in parts], axis=0),
        largest_merged=float(sum(part.largest_merged for part in parts)),
    )


def edges_from_public(public_scores: Scores, *, bins: int, probability: bool) -> Edges:
    """Edges of ``bins`` cells, equally wide (on the logit scale for probabilities).

    They span the public scores from their 1 % to their 99 % quantile and half that width more on
    either side, so private scores fall outside only where no public one is near.

    Args:
        public_scores: Finite scores of the public rows.
        bins: Cells between under- and overflow, at least 2.
        probability: Whether scores are probabilities.

    Raises:
        EmptySummaryError: there is no public score.
        NonFiniteError: a public score is NaN or infinite.
    """
    if len(public_scores) == 0:
        message = "no public score to derive edges from; add calibration anchors"
        raise EmptySummaryError(message)
    if not np.isfinite(public_scores).all():
        message = "a public score is NaN or infinite; the scorer must score every public row"
        raise NonFiniteError(message)
    values = np.sort(public_scores.astype(np.float64))
    if probability:
        values = logit(values)
    low, high = np.quantile(values, [_TAIL, 1 - _TAIL])
    width = high - low
    least = max(abs(low), abs(high), 1.0) * 1e-6
    margin = _MARGIN * width if width > least else least * bins
    edges = np.linspace(low - margin, high + margin, bins + 1)
    if probability:
        edges = 1 / (1 + np.exp(-edges))
    # Rounding can make neighbours equal near 0 and 1: keep what ascends strictly.
    kept = np.concatenate([[True], np.diff(edges) > 0])
    ascending = edges[kept]
    return ascending if len(ascending) > 1 else np.array([edges[0], np.nextafter(edges[0], np.inf)])


def quantile(summary: ScoreSummary, share: float) -> float:
    """Score with a share of all samples at or above it, linear inside a cell.

    Args:
        summary: Over all sites.
        share: In [0, 1].

    Returns:
        −inf where the share reaches into the underflow, the last edge where it lies in the overflow.

    Raises:
        EmptySummaryError: the summary holds no sample.
    """
    if summary.total <= 0:
        message = "the score summary holds no sample; check that sites hold scored samples"
        raise EmptySummaryError(message)
    wanted = share * summary.total
    above = float(summary.counts[-1])
    if wanted <= above:
        return float(summary.edges[-1])
    for cell in range(len(summary.counts) - 2, 0, -1):
        held = float(summary.counts[cell])
        low, high = float(summary.edges[cell - 1]), float(summary.edges[cell])
        if held > 0 and above + held >= wanted:
            return high - (high - low) * (wanted - above) / held
        above += held
    return float("-inf") if summary.counts[0] > 0 else float(summary.edges[0])


def share_above(summary: ScoreSummary, threshold: float) -> float:
    """Share of the samples at or above a threshold, linear inside a cell, in [0, 1]."""
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


def grid(edges: Edges) -> Float[np.ndarray, " grid"]:
    """All thresholds that a site accepts, ascending; −inf and +inf are accepted too."""
    parts = np.arange(PARTS) / PARTS
    inner = edges[:-1, None] + (edges[1:] - edges[:-1])[:, None] * parts[None, :]
    return np.concatenate([inner.ravel(), edges[-1:]])


def snap(value: float, edges: Edges) -> float:
    """The nearest threshold on the grid; below the first edge −inf, above the last edge the last."""
    if value == float("inf"):
        return value
    if value < edges[0]:
        return float("-inf")
    points = grid(edges)
    return float(points[int(np.abs(points - value).argmin())])


def on_grid(value: float, edges: Edges) -> bool:
    """Whether a site accepts this threshold."""
    return value in {float("-inf"), float("inf")} or bool((grid(edges) == value).any())


def rank_error_bound(summary: ScoreSummary) -> float:
    """Largest error of a threshold's rank, as a share of all samples: the fullest run of cells."""
    if summary.total <= 0:
        return 0.0
    fullest = max(float(summary.counts.max()), summary.largest_merged)
    return min(1.0, fullest / summary.total)


def logit(probability: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Log p / (1 − p), with p held away from 0 and 1."""
    inside = np.clip(probability, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    found: Float[np.ndarray, " n"] = np.log(inside / (1 - inside))
    return found


def _runs(counts: list[int], smallest: int) -> list[tuple[int, int]]:
    """Runs of cells [start, stop) that each hold at least ``smallest`` samples, or none at all."""
    runs: list[tuple[int, int]] = []
    start, held = 0, 0
    for cell, count in enumerate(counts):
        held += count
        if held >= smallest:
            runs.append((start, cell + 1))
            start, held = cell + 1, 0
    if start < len(counts):
        if held == 0 or not runs:
            runs.append((start, len(counts)))
        else:
            runs[-1] = (runs[-1][0], len(counts))
    return runs
