"""Order from easy to hard by the steps that an expression needs, and by how deep they build up.

Difficulty of a sample:  d = α₁ · (sub-steps) + α₂ · (concept depth). For arithmetic and boolean
expressions the parse tree IS the decomposition: every operator is a sub-step, and the depth is the
longest chain of operators that feed each other (``strategies/maths/expressions.py``, which reads
and never evaluates). Samples are split at the quantiles of d into K buckets of equal size, up to
ties, which stay together; buckets go from easy to hard, and the order within a bucket is random.
Samples whose prompt holds no expression come last, after the hardest bucket: nothing is known of
them.

Reference:
    W. Zhao et al., Learning to Solve Complex Problems via Dataset Decomposition (Decomp), NeurIPS
    2025, https://arxiv.org/abs/2602.20296
    Differs from the paper: no teacher writes sub-problems, so the order is of the silo's own
    samples; depth is that in the sample's own operator tree, as in a graph merged over samples
    every arithmetic operator feeds every other; one plan without early stopping per bucket, and a
    constant rate, as a decaying one takes the smallest steps on the hardest samples.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Sample, Scores
from fedwinnow.strategies.interfaces.ordering import Order, Ordering
from fedwinnow.strategies.maths.expressions import operators


def decomposition(*, alpha1: float = 1.0, alpha2: float = 1.0, buckets: int = 3) -> Ordering:
    """Train from expressions of few and shallow operators to those of many and deep ones.

    Every pass has the same order; scores are not used.

    Args:
        alpha1: Weight of the number of operators, at least 0.
        alpha2: Weight of the depth of operators, at least 0.
        buckets: Buckets K, at least 1.

    Raises:
        ValueError: a weight is negative or no number, both are 0, or ``buckets`` is below 1.

    Reference:
        Decomp, NeurIPS 2025, https://arxiv.org/abs/2602.20296
    """
    fair = all(0 <= alpha < float("inf") for alpha in (alpha1, alpha2)) and alpha1 + alpha2 > 0
    if not fair or buckets < 1:
        message = (
            f"alpha1 = {alpha1}, alpha2 = {alpha2}, buckets = {buckets} are out of range; allowed: "
            "weights of at least 0 that are not both 0, and at least 1 bucket"
        )
        raise ValueError(message)

    def order(scores: Scores, seed: int, samples: Sequence[Sample]) -> Order:
        found = [operators(sample.prompt) for sample in samples]
        difficulty = np.array(
            [np.inf if one is None else alpha1 * one.count + alpha2 * one.depth for one in found],
            dtype=np.float64,
        )
        chance = np.random.default_rng(seed).permutation(len(scores))
        return Order(
            indices=np.lexsort((chance, bucket_of(difficulty, buckets))),
            keep_order=True,
            schedule_hint="constant",
            best_last=True,
        )

    return order


def bucket_of(difficulty: Float[np.ndarray, " samples"], buckets: int) -> np.ndarray:
    """Return the bucket of each sample, 0 the easiest; equal difficulties share one.

    Of n known difficulties, one with r others below it goes to bucket ⌊r · K / n⌋; infinite ones go
    to the last, K.
    """
    known = np.sort(difficulty[np.isfinite(difficulty)])
    below = np.searchsorted(known, difficulty, side="left")
    return np.where(np.isfinite(difficulty), below * buckets // max(1, len(known)), buckets)
