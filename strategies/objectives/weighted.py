"""Weight each sample in proportion to its probability of being clean (soft curation).

L = (1 / n) Σ_i w_i ℓ_i with w_i = p_i / mean(p), p the calibrated probability of the kept samples.
Weights of mean 1 leave the learning rate what it is. A sample without a score gets the mean
weight. With the threshold ``keep_all`` nothing is cut and the weights alone curate.

Reference:
    M. Ren et al., Learning to Reweight Examples for Robust Deep Learning, ICML 2018,
    https://arxiv.org/abs/1803.09050, for weights on losses instead of a cut
    Differs from the paper: no inner step of gradients; the weight is a calibrated probability.
"""

from fedwinnow.curation.datatypes import Scores, Trajectory
from fedwinnow.curation.errors import PluginError
from fedwinnow.strategies.interfaces.objective import WeighingObjective
from fedwinnow.strategies.maths.soft_weights import (
    SoftMean,
    Weights,
    fill_missing,
    normalise_to_mean_one,
)


def weighted() -> WeighingObjective:
    """Minimise the mean loss, weighted by the deciding scorer's probability.

    Reference:
        Ren et al., ICML 2018, https://arxiv.org/abs/1803.09050
    """
    return SoftMean(columns=frozenset(), unit="probability", rule=_weights)


def _weights(scores: Scores, trajectory: Trajectory) -> Weights:  # noqa: ARG001 - scores alone
    outside = int(((scores < 0) | (scores > 1)).sum())
    if outside:
        message = (
            f"objective 'weighted': expected probabilities, got {outside} of {len(scores)} scores "
            "outside [0, 1]; choose scorer 'calibrated'"
        )
        raise PluginError(message)
    return normalise_to_mean_one(fill_missing(scores))
