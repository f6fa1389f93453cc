"""A curriculum: samples sorted by score, the same order in every pass.

Descending is easy to hard where a high score means that the answer follows from the prompt (as
FedDQC's IRA does). The order comes with the hint of a constant learning rate: a rate that decays
over the same steps multiplies the last samples by the smallest steps, so that order and schedule
can no longer be told apart. The caller decides: ``order.schedule_hint or section.schedule``.

Reference:
    Y. Du et al., Data Quality Control in Federated Instruction-tuning of Large Language Models
    (FedDQC), Findings of ACL 2025, section 3.3, https://arxiv.org/abs/2410.11540
    Differs from the paper: one sorted pass instead of three stages with new scores before each, and
    a constant rate where the paper's runs decay it.
"""

import numpy as np

from fedwinnow.curation.errors import NonFiniteError
from fedwinnow.curation.nouns import Scores
from fedwinnow.curation.protocols import Order, Ordering


def by_score(*, descending: bool = True) -> Ordering:
    """Train from the best to the worst kept sample, or the other way round.

    Equal scores stay in data order, whatever the seed.

    Args:
        descending: Highest score first (FedDQC, easy to hard); False puts the best samples last.

    Reference:
        FedDQC, Findings of ACL 2025, https://arxiv.org/abs/2410.11540
    """

    def order(scores: Scores, seed: int) -> Order:  # noqa: ARG001 - sorting needs no chance
        if np.isnan(scores).any():
            message = (
                f"ordering by_score: expected numbers, got {int(np.isnan(scores).sum())} NaN among "
                f"{len(scores)} scores; leave samples without a score out"
            )
            raise NonFiniteError(message)
        keys = -scores if descending else scores
        return Order(
            indices=np.argsort(keys, kind="stable"), keep_order=True, schedule_hint="constant"
        )

    return order
