"""Time rows in turn, so that a busy machine slows all alike, and give ratios with intervals.

Reference:
    B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile
    interval), https://doi.org/10.1201/9780429246593
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float

T = TypeVar("T")
Seconds = Float[np.ndarray, " repetitions"]
_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Clock: processor time on a CPU; wall time on a GPU, after the device's work is done."""

    cuda: bool

    @property
    def name(self) -> str:
        """Return the name of the time: "wall" or "processor"."""
        return "wall" if self.cuda else "processor"

    def now(self) -> float:
        """Return the seconds since some moment."""
        if not self.cuda:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def interleaved(
    rows: Mapping[str, Callable[[], T]], repetitions: int, clock: Clock
) -> tuple[dict[str, Seconds], dict[str, T]]:
    """Run every row once a repetition, each time in another order.

    Args:
        rows: Name → function to time.
        repetitions: At least 1, after one that is not counted.
        clock: Clock to time with.

    Returns:
        Name → seconds of each repetition, and name → the row's last result.
    """
    names, last = list(rows), dict[str, T]()
    times = {name: np.zeros(repetitions + 1) for name in names}
    for repetition in range(repetitions + 1):
        turn = repetition % len(names)
        order = names[turn:] + names[:turn]
        for name in order if repetition % 2 else order[::-1]:
            start = clock.now()
            last[name] = rows[name]()
            times[name][repetition] = clock.now() - start
    return {name: seconds[1:] for name, seconds in times.items()}, last


def ratio_of(times: Seconds, others: Seconds) -> dict[str, float]:
    """Return the median ratio (``ratio``) and its 95 % interval (``ratio_low``, ``ratio_high``)."""
    ratios = times / others
    draw = np.random.default_rng(0)
    again = np.median(draw.choice(ratios, (_RESAMPLES, len(ratios))), axis=1)
    low, high = np.quantile(again, [0.025, 0.975])
    return {
        "ratio": float(np.median(ratios)),
        "ratio_low": float(low),
        "ratio_high": float(high),
    }
