"""Train in stages, easy to hard; before each, rank what is left with the current global model.

K stages over the rounds; each trains on the best remaining 1/K of the kept samples, in random
order. How much of a response its prompt explains (IRA) grows as the model learns, so the site ranks
before every stage and not once. The scores, the ranking and the stages stay at the site
(``client/training/curriculum_stages.py``). The schedule hint is the decaying rate of the paper.

Reference:
    Y. Du et al., Data Quality Control in Federated Instruction-tuning of Large Language Models
    (FedDQC), Findings of ACL 2025, section 3.3, https://arxiv.org/abs/2410.11540
    Differs from the paper: any threshold selects before; stages are of equal size up to one sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedwinnow.curation.datatypes import Sample, Scores
from fedwinnow.strategies.interfaces.ordering import Order, StagedOrdering


@dataclass(frozen=True, slots=True, kw_only=True)
class EasyToHard:
    """Ordering in stages, with the number of stages and the scorer that ranks."""

    stages: int
    scorer: str

    def __call__(self, scores: Scores, seed: int, samples: Sequence[Sample]) -> Order:  # noqa: ARG002 - chance alone
        """Order the samples of one stage at random; later passes are shuffled anew."""
        order = np.random.default_rng(seed).permutation(len(scores))
        return Order(indices=order, schedule_hint="cosine")


def easy_to_hard(*, stages: int = 3, scorer: str = "ira") -> StagedOrdering:
    """Train in stages, each on the best samples that are left.

    Args:
        stages: Stages K over all rounds, at least 1; no more than rounds or samples take place.
        scorer: Forward-only scorer of one checkpoint that ranks, with its default settings.

    Raises:
        ValueError: ``stages`` is below 1.

    Reference:
        FedDQC, Findings of ACL 2025, https://arxiv.org/abs/2410.11540
    """
    if stages < 1:
        message = f"stages = {stages} is out of range; allowed: at least 1"
        raise ValueError(message)
    return EasyToHard(stages=stages, scorer=scorer)
