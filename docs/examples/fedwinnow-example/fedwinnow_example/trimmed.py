"""An objective: the mean of the smallest losses of a batch; the largest are taken for bad data.

L = (1 / k) Σ of the k = ⌈share · n⌉ smallest of the n losses.

Reference:
    Y. Shen, S. Sanghavi, Learning with Bad Training Data via Iterative Trimmed Loss Minimization,
    ICML 2019, algorithm 1, https://arxiv.org/abs/1810.11874
    Differs from the paper: trimmed in each batch, not over all samples between epochs.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def trimmed(*, share: float = 0.75) -> Callable[..., Tensor]:
    """Make the objective.

    Args:
        share: Share of a batch's samples that count, in (0, 1]; at least one sample does.

    Raises:
        ValueError: ``share`` is out of range.
    """
    if not 0 < share <= 1:
        message = f"share = {share} is out of range; allowed: in (0, 1]"
        raise ValueError(message)

    def loss(
        losses: Tensor, parameters: Mapping[str, Tensor], initial: Mapping[str, Tensor]
    ) -> Tensor:
        del parameters, initial  # the adapter does not enter
        count = max(1, math.ceil(share * len(losses)))
        smallest = torch.topk(losses, count, largest=False).values
        # A NaN counts as the largest and would be trimmed away in silence: 0 · NaN keeps it seen.
        return smallest.mean() + 0 * losses.sum()

    return loss
