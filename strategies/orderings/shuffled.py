"""Shuffle samples by a seed, anew for every pass: the order of plain fine-tuning."""

from collections.abc import Sequence

import numpy as np

from fedwinnow.curation.datatypes import Sample, Scores
from fedwinnow.strategies.interfaces.ordering import Order, Ordering


def shuffled() -> Ordering:
    """Train in random order: the control for every curriculum.

    No learning-rate hint; later passes are shuffled anew by the trainer.
    """
    return _order


def _order(scores: Scores, seed: int, samples: Sequence[Sample]) -> Order:  # noqa: ARG001 - chance alone
    return Order(indices=np.random.default_rng(seed).permutation(len(scores)))
