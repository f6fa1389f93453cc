"""Minimise the mean over samples of the response's mean token loss (supervised fine-tuning).

L = (1 / n) Σ_i ℓ_i with ℓ_i = (1 / T_i) Σ_t −log p(y_t | x, y_<t), so every sample counts the same,
however long its response is.

Reference:
    L. Ouyang et al., Training language models to follow instructions with human feedback, NeurIPS
    2022, section 3.5, https://arxiv.org/abs/2203.02155
    Differs from the common token mean: long responses do not outweigh short ones.
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from fedwinnow.strategies.interfaces.objective import Objective


def sft() -> Objective:
    """Minimise the mean loss of the samples, nats.

    Reference:
        Ouyang et al., NeurIPS 2022, https://arxiv.org/abs/2203.02155
    """
    return _loss


def _loss(
    losses: Float[Tensor, " batch"],
    parameters: Mapping[str, Tensor],  # noqa: ARG001 - the adapter does not enter
    initial: Mapping[str, Tensor],  # noqa: ARG001 - likewise
) -> Float[Tensor, ""]:
    return losses.mean()
