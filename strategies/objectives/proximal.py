"""Fine-tune with a pull back to the adapter that the round started from.

L = (1 / n) Σ_i ℓ_i + (μ / 2) ‖θ − θ_0‖², with θ the trainable factors and θ_0 their values at the
start of the round.

Reference:
    T. Li et al., Federated Optimization in Heterogeneous Networks (FedProx), MLSys 2020,
    equation 2, https://arxiv.org/abs/1812.06127
    Differs from the paper: the distance is that of the LoRA factors, not of the full weights.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from fedwinnow.strategies.interfaces.objective import Objective


def proximal(*, mu: float) -> Objective:
    """Minimise the mean loss of the samples plus a pull towards the round's start.

    Args:
        mu: Strength of the pull in nats per squared unit of a factor, at least 0; 0 is ``sft``.

    Raises:
        ValueError: ``mu`` is negative or no number.

    Reference:
        FedProx, MLSys 2020, https://arxiv.org/abs/1812.06127
    """
    if not 0 <= mu < float("inf"):
        message = f"mu = {mu} is out of range; allowed: a number of at least 0"
        raise ValueError(message)

    def loss(
        losses: Float[Tensor, " batch"],
        parameters: Mapping[str, Tensor],
        initial: Mapping[str, Tensor],
    ) -> Float[Tensor, ""]:
        mean = losses.mean()
        if mu == 0:
            return mean
        squares = [(parameters[name] - initial[name]).square().sum() for name in sorted(parameters)]
        return mean + 0.5 * mu * torch.stack(squares).sum().to(mean)

    return loss
