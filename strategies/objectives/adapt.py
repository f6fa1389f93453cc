"""Weight samples by the likeness of their representation to the anchors' (soft curation).

L = (1 / n) Σ_i w_i ℓ_i with w_i = σ(s_i / τ), s_i = (1 / K) Σ_k cos(h_i, H_k): h_i the mean last
hidden state over the body, H_k its mean over the reference anchors of domain k, both at the last
measured checkpoint. By default the weights are rescaled to mean 1: a cosine in [−1, 1] with τ = 1
gives weights in [0.27, 0.73] of mean about 0.5, which is largely half the learning rate.
A sample without a representation counts as the mean one.

Reference:
    W. Zhao et al., Rethinking Data Curation in LLM Training: Online Reweighting Offers Better
    Generalization than Offline Methods (ADAPT), ICLR 2026, https://arxiv.org/abs/2605.05227
    Differs from the paper: weights are measured once, before training, not refreshed as it goes;
    every body token weighs the same in h_i, where the paper's later tokens weigh more; s_i is the
    mean over the anchors' domain means, not over the anchors; ``rescale = False`` is the paper's.
"""

import numpy as np

from fedwinnow.curation.datatypes import Scores, Trajectory
from fedwinnow.strategies.interfaces.objective import WeighingObjective
from fedwinnow.strategies.maths.soft_weights import (
    SoftMean,
    Weights,
    fill_missing,
    normalise_to_mean_one,
)


def adapt(*, tau: float = 1.0, rescale: bool = True) -> WeighingObjective:
    """Minimise the mean loss, weighted by the likeness to the anchors.

    Args:
        tau: Temperature, above 0: the smaller, the closer to a cut at cosine 0; inf weighs alike.
        rescale: Whether weights are brought to mean 1; the paper's own are not.

    Raises:
        ValueError: ``tau`` is not above 0.

    Reference:
        ADAPT, ICLR 2026, https://arxiv.org/abs/2605.05227
    """
    if not tau > 0:
        message = f"tau = {tau} is out of range; allowed: above 0"
        raise ValueError(message)

    def rule(scores: Scores, trajectory: Trajectory) -> Weights:  # noqa: ARG001 - likeness alone
        cosines = trajectory[-1].columns["representation"].astype(np.float64).mean(axis=1)
        with np.errstate(over="ignore"):
            weights = fill_missing((1 + np.tanh(cosines / tau / 2)) / 2)  # σ(x), exact at both ends
        return normalise_to_mean_one(weights) if rescale else weights

    return SoftMean(columns=frozenset({"representation"}), unit="", rule=rule)
