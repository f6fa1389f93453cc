"""Compute the learning rate of every step in a plan that spans all rounds.

An order that puts the most valuable samples last, under a rate that decays to nothing, gives those
samples the smallest steps: order and schedule cancel. So an ordering names the schedule
that suits it, ``schedule = "auto"`` takes that, and another choice is obeyed with a warning.

Reference:
    How Learning Rate Decay Wastes Your Best Data in Curriculum-Based LLM Pretraining, ICLR 2026,
    https://arxiv.org/abs/2511.18903: in ascending order a constant or a gently decaying rate (final
    rate about a third of the peak) is what keeps the gain of the order.
"""

import math

from fedwinnow.curation.errors import ConfigError, ProtocolError

SCHEDULES = ("constant", "linear", "cosine")
AUTO, DEFAULT = "auto", "cosine"
"""The schedule that leaves the choice to the ordering, and the one taken where it has none."""
GENTLE = 1 / 3
"""Smallest last rate, as a share of the peak, under which an ascending order keeps its gain."""


def learning_rate(
    step: int, total_steps: int, peak: float, schedule: str, warmup_share: float
) -> float:
    """Return the learning rate of one optimizer step in a plan over all rounds; never 0.

    With W = round(warmup_share · total_steps), below total_steps: peak · (step + 1) / W for the
    first W steps; then peak · f(x) with x = (step − W) / (total_steps − W) and f = 1 (constant),
    1 − x (linear) or (1 + cos πx) / 2 (cosine).

    Args:
        step: Step since the first round began, from 0, below ``total_steps``.
        total_steps: Steps of all rounds together.
        peak: Largest rate.
        schedule: ``constant``, ``linear`` or ``cosine``.
        warmup_share: Share of all steps with a rising rate, in [0, 1).

    Raises:
        ConfigError: the schedule is unknown.
        ProtocolError: ``step`` is outside the plan.
    """
    if schedule not in SCHEDULES:
        message = (
            f"learning-rate schedule {schedule!r} is unknown; set training.schedule, or the "
            f"ordering's hint, to one of {', '.join(SCHEDULES)}"
        )
        raise ConfigError(message)
    if not 0 <= step < total_steps:
        message = (
            f"training step {step}: expected a step of a plan of {total_steps} steps; "
            "send the step_offset and total_steps of the whole run"
        )
        raise ProtocolError(message)
    warmup = min(round(warmup_share * total_steps), total_steps - 1)
    if step < warmup:
        return peak * ((step + 1) / warmup)
    progress = (step - warmup) / (total_steps - warmup)
    if schedule == "linear":
        return peak * (1 - progress)
    if schedule == "cosine":
        return peak * (1 + math.cos(math.pi * progress)) / 2
    return peak
