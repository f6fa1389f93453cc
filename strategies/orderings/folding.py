"""Order samples in several sweeps over the scores, each from its worst to its best (folding).

With π the positions sorted by ascending score, fold f of L holds π[f], π[f + L], π[f + 2L], …; the
order is fold 0, fold 1, …, fold L − 1. One fold, or as many as there are samples, is plain sorting.
Every fold ends with good samples, so the schedule hint is a constant rate.

Reference:
    Y. Dai et al., Data Efficacy for Language Model Training (DELT), 2025, section 4 (folding
    ordering), https://arxiv.org/abs/2506.21545
    Differs from the paper: any scorer gives the score, not its Learnability-Quality Score; the
    constant rate is that of https://arxiv.org/abs/2511.18903, which judges folding fragile.
"""

from collections.abc import Sequence

import numpy as np

from fedwinnow.curation.datatypes import Sample, Scores
from fedwinnow.strategies.interfaces.ordering import Order, Ordering
from fedwinnow.strategies.orderings.by_score import check_scores


def folding(*, folds: int = 3) -> Ordering:
    """Train in ``folds`` ascending sweeps over the scores, each sample in one of them.

    Equal scores stay in data order, whatever the seed; later passes repeat the order.

    Args:
        folds: Sweeps L, at least 1; 3 in the paper.

    Raises:
        ValueError: ``folds`` is below 1.

    Reference:
        DELT, 2025, https://arxiv.org/abs/2506.21545
    """
    if folds < 1:
        message = f"folds = {folds} is out of range; allowed: at least 1"
        raise ValueError(message)

    def order(scores: Scores, seed: int, samples: Sequence[Sample]) -> Order:  # noqa: ARG001 - scores alone
        check_scores(scores, "folding")
        ascending = np.argsort(scores, kind="stable")
        filled = min(folds, max(1, len(scores)))
        return Order(
            indices=np.concatenate([ascending[fold::folds] for fold in range(filled)]),
            keep_order=True,
            schedule_hint="constant",
            best_last=True,
        )

    return order
