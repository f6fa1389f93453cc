"""An ordering: the domains take turns, each with its best remaining sample.

A control for ``by_score``, which may train long on one domain where the scores of that are higher.
"""

from collections.abc import Callable, Sequence

import numpy as np

from fedwinnow.curation.datatypes import Sample, Scores
from fedwinnow.strategies.interfaces.ordering import Order
from fedwinnow.strategies.orderings.by_score import check_scores


def interleaved(*, best_first: bool = True) -> Callable[..., Order]:
    """Make the ordering.

    Args:
        best_first: Whether a domain begins with its highest score; False: with its lowest.
    """

    def order(scores: Scores, seed: int, samples: Sequence[Sample]) -> Order:  # noqa: ARG001 - it draws nothing
        check_scores(scores, "interleaved")
        domains = [sample.domain for sample in samples]
        ranked = np.argsort(-scores if best_first else scores, kind="stable")
        turns: dict[str, int] = {}
        keys = []
        for position in ranked.tolist():
            turn = turns[domains[position]] = turns.get(domains[position], -1) + 1
            keys.append((turn, domains[position], position))
        indices = np.array([position for *_, position in sorted(keys)], dtype=np.int64)
        return Order(indices=indices, best_last=not best_first)

    return order
