"""Score a large silo block by block, as formulas hold several columns in float64 at once.

A score depends on a sample's own rows alone (``plugins check`` holds every scorer to that), so the
blocks' scores are those of the whole up to rounding, and up to ``BLOCK`` samples bit for bit.
"""

from dataclasses import replace

import numpy as np

from fedwinnow.curation.datatypes import Fitted, Scores, SignalTable, Trajectory
from fedwinnow.strategies.interfaces.scorer import Scorer

BLOCK = 65_536
"""Samples scored at once."""


def score_in_blocks(scorer: Scorer, trajectory: Trajectory, fitted: Fitted) -> Scores:
    """Score every row of a trajectory, as ``scorer.score`` does, with the memory of one block."""
    number = len(trajectory[0].ids)
    if number <= BLOCK:
        return scorer.score(trajectory, fitted)
    scores = np.empty(number, dtype=np.float64)
    for start in range(0, number, BLOCK):
        block = slice(start, start + BLOCK)
        scores[block] = scorer.score(tuple(_rows(one, block) for one in trajectory), fitted)
    return scores


def _rows(table: SignalTable, block: slice) -> SignalTable:
    return replace(
        table,
        ids=table.ids[block],
        domains=table.domains[block],
        status=table.status[block],
        columns={name: values[block] for name, values in table.columns.items()},
    )
