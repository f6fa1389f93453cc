"""Compute edges of score histograms from PUBLIC scores, and the thresholds between them.

Cells hold about equally many public scores: by a fixed rule, edges are equal steps of the
distribution function

    H(x) = (1 − w) · (1/m) Σ_j L((x − c_j) / h) + w · (x − low) / (high − low)

with c_j at most ``CENTRES`` quantiles of the public scores, L the logistic function, h Silverman's
bandwidth and w = ``SPREAD``; the uniform part and the margins cover what no public score shows.
Cells of equal width miss the bar of 0.1 % rank error at 256 cells (0.15 % to 0.2 %), these meet it.
For probabilities all of this happens on the logit scale. A score that several public rows share
gets a cell of its own, which holds nothing else. Edges are rounded to a lattice: sites whose
last bits differ still agree.

A threshold lies on a grid of ``PARTS`` equal parts of each cell: finer than a cell, so that its
rank is exact enough, and coarse enough that it cannot be steered at will between two samples.

Reference:
    Bandwidth: B. W. Silverman, Density Estimation for Statistics and Data Analysis, 1986, equation
    3.31, https://doi.org/10.1201/9781315140919
"""

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Scores
from fedwinnow.curation.errors import EmptySummaryError, NonFiniteError

PARTS = 16
"""Grid points of a threshold in each cell."""
CENTRES = 256
"""Public quantiles that the density is built on, at most."""
SPREAD = 0.1
"""Share w of the edges that lies evenly over the whole range."""
_MARGIN = 2.0
_LEAST_PROBABILITY = 1e-6
_POINTS = 2048
_HUGE = 1e100

Edges = Float[np.ndarray, " edges"]


def edges_from_public(public_scores: Scores, *, bins: int, probability: bool) -> Edges:
    """Compute the edges of at most ``bins`` cells between underflow and overflow.

    They are the same at every site.

    Args:
        public_scores: Scores of the public rows; NaN (no score) is left out.
        bins: Most cells, at least 2.
        probability: Whether scores are probabilities.

    Returns:
        At least two edges, strictly ascending, in the scorer's own unit.

    Raises:
        EmptySummaryError: no public row has a score.
        NonFiniteError: a public score is infinite.
    """
    scores = np.sort(public_scores[~np.isnan(public_scores)].astype(np.float64))
    if len(scores) == 0:
        message = (
            f"edges of the histogram: expected scores of public rows, got {len(public_scores)} "
            "rows and none with a score; add calibration anchors (anchors.path)"
        )
        raise EmptySummaryError(message)
    if not np.isfinite(scores).all():
        message = (
            f"edges of the histogram: expected finite public scores, got {scores[0]} to "
            f"{scores[-1]}; a scorer must return finite numbers, or NaN for no score"
        )
        raise NonFiniteError(message)
    own = _shared(scores, most=max(1, bins // 4))
    smooth = _smooth(logit(scores) if probability else scores, bins + 1 - 2 * len(own))
    if probability:
        smooth = np.round(2.0**32 / (1 + np.exp(-smooth))) / 2.0**32
        if len(np.unique(smooth)) == 1 and len(own) == 0:  # closer together than the rounding
            smooth = smooth[0] + np.array([0.0, 1.0 if smooth[0] < 1 else -1.0]) / 2.0**32
    found: Edges = np.unique(np.concatenate([smooth, own, np.nextafter(own, np.inf)]))
    return found


def threshold_grid(edges: Edges) -> Float[np.ndarray, " grid"]:
    """Return all finite thresholds that a site accepts, ascending; it accepts −inf and +inf too."""
    parts = np.arange(PARTS) / PARTS
    inner = edges[:-1, None] + (edges[1:] - edges[:-1])[:, None] * parts[None, :]
    return np.concatenate([inner.ravel(), edges[-1:]])


def snap_to_grid(value: float, edges: Edges) -> float:
    """Return the nearest threshold on the grid that is not above ``value``: it never drops more.

    That is −inf below the first edge, and the last edge above it; inf stays inf.

    Raises:
        NonFiniteError: ``value`` is NaN.
    """
    if np.isnan(value):
        message = "threshold: expected a number, got NaN; look at the scores of the public rows"
        raise NonFiniteError(message)
    if value == float("inf"):
        return value
    points = threshold_grid(edges)
    place = int(np.searchsorted(points, value, side="right"))
    return float(points[place - 1]) if place else float("-inf")


def is_on_grid(value: float, edges: Edges) -> bool:
    """Return whether a site accepts this threshold."""
    return value in {float("-inf"), float("inf")} or bool((threshold_grid(edges) == value).any())


def logit(probability: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return log(p / (1 − p)), with p held away from 0 and 1."""
    inside = np.clip(probability, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    found: Float[np.ndarray, " n"] = np.log(inside / (1 - inside))
    return found


def _shared(scores: Float[np.ndarray, " n"], *, most: int) -> Float[np.ndarray, " shared"]:
    """Return scores that several rows share, the most frequent ones first, at most ``most``."""
    values, counts = np.unique(scores, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return values[order[counts[order] > 1][:most]]


def _smooth(scores: Float[np.ndarray, " n"], number: int) -> Edges:
    """Return equal steps of H, rounded to a lattice far finer than a cell; ``scores`` ascend."""
    scores = np.clip(scores, -_HUGE, _HUGE)
    low, high = float(scores[0]), float(scores[-1])
    quarter, three = np.quantile(scores, [0.25, 0.75])
    widths = [width for width in (float(scores.std()), (three - quarter) / 1.349) if width > 0]
    constant = high - low <= 1e-9 * max(abs(low), abs(high), 1 / _HUGE)
    width = max(abs(low), 1.0) / 1024 if constant else float(min(widths))
    bandwidth = 0.9 * width * len(scores) ** -0.2 * np.sqrt(3) / np.pi
    lattice = 2.0 ** np.floor(np.log2(bandwidth / 1024))
    low, high = (np.round(edge / lattice) * lattice for edge in (low, high))
    low, high = low - _MARGIN * width, high + _MARGIN * width
    many = min(len(scores), CENTRES)
    centres = np.quantile(scores, (np.arange(many) + 0.5) / many)
    near = centres[:, None] + bandwidth * np.linspace(-6, 6, 13)
    points = np.unique(np.concatenate([np.linspace(low, high, _POINTS), near.ravel()]))
    points = points[(points >= low) & (points <= high)]
    level = SPREAD * (points - low) / (high - low)
    for centre in centres:
        level += (1 - SPREAD) / many * 0.5 * (1 + np.tanh((points - centre) / (2 * bandwidth)))
    steps = np.linspace(level[0], level[-1], number)
    return np.asarray(np.round(np.interp(steps, level, points) / lattice) * lattice)
