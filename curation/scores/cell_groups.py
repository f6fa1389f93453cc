"""Group the cells of a histogram by public numbers alone.

With n the rounded number of a site's samples, c its smallest cell, s its rounding step and b its
most groups, the C cells are told in

    G = clamp(⌊n / (FILL · max(c, s))⌋, 1, min(C, b))

groups of consecutive cells, or each by itself where c = s = 1: nothing is hidden then. A cell's
public mass is q_i = ½ / C + ½ · (share of the public scores in it), and cell i belongs to group
⌊G · (q_1 + … + q_{i−1} + q_i / 2)⌋, so that groups hold about equal public mass and a score that
many public rows share keeps a group nearly to itself. No private score is read.

``FILL`` = 4 was measured at c = 8, s = 10 against 2, 3 and 6, by the rank error of
keep_fraction and the share of samples told as 0: ``docs/threat-model.md``, section 4.
"""

from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int

from fedwinnow.curation.scores.histogram_edges import Edges

FILL = 4
"""Samples that a group is made for, in smallest cells."""

PublicRowScores: TypeAlias = Float[np.ndarray, " public"]
"""Scores of the public rows, any of which may be NaN (no score)."""


def public_mass(
    edges: Edges, public_scores: PublicRowScores | None = None
) -> Float[np.ndarray, " cells"]:
    """Return the public mass of each cell, above 0; the sum is 1.

    Args:
        edges: Of the histogram.
        public_scores: Of the public rows; NaN (no score) is left out. None: all cells are alike.
    """
    cells = len(edges) + 1
    even = np.full(cells, 1.0 / cells)
    known = np.zeros(0) if public_scores is None else public_scores[~np.isnan(public_scores)]
    if len(known) == 0:
        return even
    places = np.searchsorted(edges, known.astype(np.float64), side="right")
    found: Float[np.ndarray, " cells"] = 0.5 * even + 0.5 * (
        np.bincount(places, minlength=cells) / len(known)
    )
    return found


def number_of_groups(cells: int, *, samples: int, smallest_cell: int, step: int, most: int) -> int:
    """Return the number of groups G; see the module.

    Args:
        cells: Cells of the histogram, at least 1.
        samples: Samples of the site, rounded, at least 0.
        smallest_cell: Groups with fewer samples are told as 0, at least 1.
        step: Counts are told in multiples of this, at least 1.
        most: Most groups, at least 1.
    """
    least = max(smallest_cell, step)
    wanted = cells if least == 1 else samples // (FILL * least)
    return max(1, min(wanted, cells, most))


def group_cells(mass: Float[np.ndarray, " cells"], number: int) -> Int[np.ndarray, " cells"]:
    """Return the group of each cell, ascending from 0 without a gap; see the module."""
    if number >= len(mass):
        return np.arange(len(mass))
    middles = (np.cumsum(mass) - mass / 2) / mass.sum()
    groups = np.minimum((middles * number).astype(np.int64), number - 1)
    return np.asarray(np.unique(groups, return_inverse=True)[1])
