"""Keep as much as the training budget is worth: the best p of P equal quality buckets.

With the law of ``strategies/maths/data_scaling_law.py`` and a budget of N samples seen,

    p* = argmin_p y_p(N),    τ with |{s ≥ τ}| = p*/P · all samples, −∞ where p* = P

A small budget is best spent on few good samples, a large one wears them out. The numbers of the
law are measured beforehand (``fedwinnow budget``); here only the summed histogram is read. The law
was found for contrastive pre-training and is an experiment for LoRA: the evidence says so.

Reference:
    S. Goyal et al., Scaling Laws for Data Filtering: Data Curation cannot be Compute Agnostic,
    CVPR 2024, theorem 1, https://arxiv.org/abs/2404.07177
"""

from collections.abc import Mapping, Sequence

from fedwinnow.curation.datatypes import PublicScores, ScoreSummary, ThresholdDecision
from fedwinnow.curation.scores.histogram import quantile
from fedwinnow.strategies.interfaces.threshold import Threshold
from fedwinnow.strategies.maths.data_scaling_law import Law, expected_losses, most_worth
from fedwinnow.strategies.maths.threshold_evidence import decide_threshold, pool_summaries


def budget(
    *,
    samples: float,
    utilities: Sequence[float],
    half_lives: Sequence[float],
    scale: float,
    floor: float,
    bucket: float,
    error: float = 0.0,
) -> Threshold:
    """Make the rule; see the module. All numbers but the first come from the fit.

    Args:
        samples: The budget: optimizer steps × batch × sites, samples seen, at least 1.
        utilities: b of each bucket, best bucket first, at most 0.
        half_lives: τ of each bucket, passes, above 0.
        scale: a, above 0.
        floor: d, nats, at least 0.
        bucket: Samples of a bucket in the fit, at least 1.
        error: Relative error of the fit, at least 0, reported in the evidence.

    Raises:
        ValueError: a number is out of range.
    """
    law = Law(
        utilities=tuple(float(b) for b in utilities),
        half_lives=tuple(float(tau) for tau in half_lives),
        scale=float(scale),
        floor=float(floor),
        pool=float(bucket),
    )
    if not 1 <= samples < float("inf"):
        message = f"samples = {samples} is out of range; allowed: at least 1 sample seen"
        raise ValueError(message)
    if not 0 <= error < float("inf"):
        message = f"error = {error} is out of range; allowed: at least 0"
        raise ValueError(message)

    def rule(summaries: Mapping[str, ScoreSummary], public: PublicScores) -> ThresholdDecision:
        total, number = pool_summaries(summaries), len(law.utilities)
        size = total.total / number
        losses = expected_losses(law, float(samples), size)
        best = most_worth(losses)
        value = float("-inf") if best == number else quantile(total, best / number)
        found = {
            "experimental": 1.0,
            "samples_seen": float(samples),
            "buckets": float(number),
            "buckets_kept": float(best),
            "passes": samples / (best * size),
            "law_error": float(error),
            "expected_loss": losses[best - 1],
        }
        found |= {f"expected_loss_{p}": loss for p, loss in enumerate(losses, start=1)}
        return decide_threshold(value, summaries, public, found)

    return rule
