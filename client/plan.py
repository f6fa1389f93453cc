"""What a site trains on at each step, and how fast: pure functions of a run's plan.

Both the learning rate and the passes over the samples span all rounds, so that R rounds of S steps
follow one plan of R · S steps.
"""

import math
from collections.abc import Iterator

import numpy as np

from fedwinnow.curation.errors import (
    ConfigError,
    EmptySelectionError,
    PluginError,
    ProtocolError,
)
from fedwinnow.curation.protocols import Order
from fedwinnow.curation.seeds import derive_seed

SCHEDULES = ("constant", "linear", "cosine")


def learning_rate(
    step: int, total_steps: int, peak: float, schedule: str, warmup_share: float
) -> float:
    """Learning rate of one optimizer step in a plan over all rounds; never 0.

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


def check_order(order: Order, count: int) -> None:
    """Refuse an order that does not hold each of ``count`` positions once.

    Raises:
        EmptySelectionError: there is no position.
        PluginError: the order is no permutation.
    """
    if count == 0:
        message = (
            "training: expected at least one kept sample, got 0; lower the threshold, or let the "
            "site report that it kept none"
        )
        raise EmptySelectionError(message)
    if not np.array_equal(np.sort(order.indices), np.arange(count)):
        message = (
            f"training.ordering: expected a permutation of {count} positions, got "
            f"{len(order.indices)} indices that are none; repair the ordering plug-in"
        )
        raise PluginError(message)


def draws(order: Order, seed: int, start: int) -> Iterator[int]:
    """Positions of samples, pass after pass without end, from draw number ``start`` on.

    The first pass is ``order.indices``; later ones repeat it where ``order.keep_order``, else pass
    e is a permutation seeded by (seed, e).
    """
    count = len(order.indices)
    epoch, skip = divmod(start, count)
    while True:
        if epoch == 0 or order.keep_order:
            places = order.indices
        else:
            places = np.random.default_rng(derive_seed(seed, "pass", epoch)).permutation(count)
        yield from (int(place) for place in places[skip:])
        epoch, skip = epoch + 1, 0
