"""Group the cells of a histogram by public numbers alone.

With n the rounded number of a site's samples, c its smallest cell, s its rounding step, b its most
groups and C the cells between underflow and overflow, these are told in

    G = clamp(max(⌊n / (FILL · m)⌋, min(FEW, ⌊n / (THIN · m)⌋)), 1, min(C, b)),    m = max(c, s)

groups of consecutive cells, or each by itself where c = s = 1: nothing is hidden then. Underflow
and overflow are a group each: a threshold that falls there drops or keeps all of them. Cells are
equal steps of the smoothed public distribution (``histogram_edges.py``), so their public masses q_i
are alike, but for a score that several public rows share: its cell weighs as many rows. Cell i
belongs to group ⌊G · (q_1 + … + q_{i−1} + q_i / 2)⌋, so that groups hold about equal public mass.
No private score is read.

Small sites get thinner groups: of 60 samples one group of 40 or more would tell nothing but their
number. FILL, THIN and FEW were chosen by the rank error of keep_fraction:
``docs/threat-model.md``, section 4.
"""

from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int

from fedwinnow.curation.scores.histogram_edges import Edges

FILL = 4
"""Mean samples of a group at a large site, in smallest cells or steps of rounding."""
THIN = 2
"""The same at a small site."""
FEW = 8
"""Groups that a site may have thinner ones for."""

PublicRowScores: TypeAlias = Float[np.ndarray, " public"]
"""Scores of the public rows, any of which may be NaN (no score)."""


def public_mass(
    edges: Edges, public_scores: PublicRowScores | None = None
) -> Float[np.ndarray, " cells"]:
    """Return the public mass of each cell; underflow and overflow have none, the sum is 1.

    Args:
        edges: Of the histogram.
        public_scores: Of the public rows; NaN (no score) is left out. None: all cells are alike.
    """
    mass = np.zeros(len(edges) + 1)
    shared = edges[1:] == np.nextafter(edges[:-1], np.inf)
    known = np.zeros(0) if public_scores is None else public_scores[~np.isnan(public_scores)]
    if len(known) == 0 or shared.all() or not shared.any():
        mass[1:-1] = 1.0 / max(1, len(shared))
        return mass
    places = np.searchsorted(edges, known.astype(np.float64), side="right")
    rows = np.bincount(places, minlength=len(mass))[1:-1] * shared / len(known)
    mass[1:-1] = np.where(shared, rows, max(0.0, 1.0 - float(rows.sum())) / (~shared).sum())
    return mass


def number_of_groups(cells: int, *, samples: int, smallest_cell: int, step: int, most: int) -> int:
    """Return the number of groups G between underflow and overflow; see the module.

    Args:
        cells: Cells between underflow and overflow, at least 0.
        samples: Samples of the site, rounded, at least 0.
        smallest_cell: Groups with fewer samples are told as 0, at least 1.
        step: Counts are told in multiples of this, at least 1.
        most: Most groups, at least 1.
    """
    least = max(smallest_cell, step)
    wanted = max(samples // (FILL * least), min(FEW, samples // (THIN * least)))
    return max(1, min(cells if least == 1 else wanted, cells, most))


def group_cells(mass: Float[np.ndarray, " cells"], number: int) -> Int[np.ndarray, " cells"]:
    """Return the group of each cell, ascending from 0, the underflow's, without a gap.

    Args:
        mass: From :func:`public_mass`.
        number: Groups between underflow and overflow, at least 1.
    """
    inner = mass[1:-1]
    if number >= len(inner):
        return np.arange(len(mass))
    middles = (np.cumsum(inner) - inner / 2) / inner.sum()
    places = np.minimum((middles * number).astype(np.int64), number - 1)
    groups = np.unique(places, return_inverse=True)[1] + 1
    found: Int[np.ndarray, " cells"] = np.concatenate([[0], groups, [groups[-1] + 1]])
    return found


def cell_shares(
    mass: Float[np.ndarray, " cells"], groups: Int[np.ndarray, " cells"]
) -> Float[np.ndarray, " cells"]:
    """Return each cell's share of its group's count: by public mass, evenly where there is none."""
    whole = np.bincount(groups, weights=mass)[groups]
    even = 1.0 / np.bincount(groups)[groups]
    shares: Float[np.ndarray, " cells"] = np.divide(mass, whole, out=even, where=whole > 0)
    return shares
