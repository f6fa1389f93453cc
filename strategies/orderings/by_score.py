"""Sort samples by score, in the same order in every pass: a curriculum.

Descending is easy to hard where a high score means that the answer follows from the prompt (as
FedDQC's IRA does); it hints the decaying rate of its paper, which gives the least trusted samples
the smallest steps. Ascending puts the best samples last and hints a constant rate: one that decays
would multiply those by the smallest steps, so that order and schedule cancel.

Reference:
    Y. Du et al., Data Quality Control in Federated Instruction-tuning of Large Language Models
    (FedDQC), Findings of ACL 2025, section 3.3, https://arxiv.org/abs/2410.11540
    Differs from the paper: one sorted pass; ``easy_to_hard`` has its stages with new scores.
    K. Luo et al., How Learning Rate Decay Wastes Your Best Data in Curriculum-Based LLM
    Pretraining, ICLR 2026, https://arxiv.org/abs/2511.18903 (ascending)
"""

from collections.abc import Sequence

import numpy as np

from fedwinnow.curation.datatypes import Sample, Scores
from fedwinnow.curation.errors import NonFiniteError
from fedwinnow.strategies.interfaces.ordering import Order, Ordering


def by_score(*, descending: bool = True) -> Ordering:
    """Train from the best to the worst kept sample, or the other way round.

    Equal scores stay in data order, whatever the seed.

    Args:
        descending: Highest score first (FedDQC, easy to hard); False puts the best samples last.

    Reference:
        FedDQC, Findings of ACL 2025, https://arxiv.org/abs/2410.11540
    """

    def order(scores: Scores, seed: int, samples: Sequence[Sample]) -> Order:  # noqa: ARG001 - scores alone
        check_scores(scores, "by_score")
        return Order(
            indices=np.argsort(-scores if descending else scores, kind="stable"),
            keep_order=True,
            schedule_hint="cosine" if descending else "constant",
            best_last=not descending,
        )

    return order


def check_scores(scores: Scores, ordering: str) -> None:
    """Refuse scores that cannot be sorted.

    Raises:
        NonFiniteError: a score is NaN.
    """
    if np.isnan(scores).any():
        message = (
            f"ordering {ordering}: expected numbers, got {int(np.isnan(scores).sum())} NaN among "
            f"{len(scores)} scores; leave samples without a score out"
        )
        raise NonFiniteError(message)
