"""Draw training steps of distinct samples, none of which outweighs its step.

A step of n draws holds n distinct samples, of which at least the group g are private: its update is
a function of a whole group, whatever the batch size. A sample that a step has already drawn waits
for the next one, so that each pass still holds every sample once.

Weights w of a step are drawn towards their mean m as far as Kish's effective number asks:

    w' = m + t (w − m),  t = min(1, √(n / g − 1) · m / σ),   so that (Σ w')² / Σ w'² ≥ g,

with σ their standard deviation. Nothing is withheld for what the weights are, as that would tell
of them. A step of n = g draws counts all its samples alike.

Reference:
    L. Kish, Survey Sampling, Wiley, 1965
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from fedwinnow.client.training.sample_stream import TrainingBatch, sample_stream, with_target
from fedwinnow.curation.errors import EmptySelectionError
from fedwinnow.curation.model.token_losses import collate
from fedwinnow.curation.tokens.tokenization import Encoding
from fedwinnow.strategies.interfaces.ordering import Order

Draw = tuple[int, Encoding]
Weights = Float[np.ndarray, " samples"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGroup:
    """Make-up of a step: its private and its public draws, and the group that it must hold."""

    group: int
    """Fewest distinct private samples of a step: ``policy.smallest_group``, at least 1."""
    private: int
    """Number of private samples, which come before the public ones."""
    private_draws: int
    """Private samples of a step."""
    public_draws: int
    """Public samples of a step; only warm-up has any."""

    @classmethod
    def of(cls, *, group: int, private: int, public: int, draws: int) -> "StepGroup":
        """Return the make-up of a step: public samples by their share, as the group leaves room."""
        share = draws * public // (private + public) if public else 0
        shared = max(0, min(share, draws - group))
        return cls(group=group, private=private, private_draws=draws - shared, public_draws=shared)


def step_batches(
    order: Order,
    encoding: Callable[[int], Encoding],
    *,
    seed: int,
    steps_before: int,
    make_up: StepGroup,
    weights: Weights,
    size: int,
) -> Iterator[TrainingBatch]:
    """Yield the batches of steps of distinct samples, and their evened weights.

    Args:
        order: A permutation of all samples' positions, the private ones first in number.
        encoding: Encodes the sample at a place.
        seed: Seed of later passes.
        steps_before: Steps of these passes that were taken before.
        make_up: How a step is made up.
        weights: How much each sample counts.
        size: Samples of a batch.

    Raises:
        EmptySelectionError: fewer samples hold a target than a step draws.
    """
    parts = []
    cuts = (0, make_up.private, len(order.indices))
    for low, high, number in zip(
        cuts[:2], cuts[1:], (make_up.private_draws, make_up.public_draws), strict=True
    ):
        if number:
            inside = order.indices[(order.indices >= low) & (order.indices < high)] - low
            own = replace(order, indices=inside)
            places = _shifted(sample_stream(own, seed, steps_before * number), low)
            draws = with_target(places, encoding, patience=high - low)
            parts.append((draws, number, high - low))
    for step in _distinct_steps(parts):
        shares = even_out(np.array([weights[place] for place, _ in step]), make_up.group)
        for first in range(0, len(step), size):
            batch = step[first : first + size]
            encodings = tuple(encoded for _, encoded in batch)
            yield TrainingBatch(
                batch=collate(list(encodings)),
                weights=torch.tensor(shares[first : first + size], dtype=torch.float64),
                places=tuple(place for place, _ in batch),
                encodings=encodings,
            )


def _shifted(places: Iterator[int], first: int) -> Iterator[int]:
    """Yield the places counted from ``first``."""
    return (first + place for place in places)


def _distinct_steps(parts: Sequence[tuple[Iterator[Draw], int, int]]) -> Iterator[list[Draw]]:
    """Yield each step's draws: of every part (stream, number, samples) its number, none twice."""
    waiting: list[deque[Draw]] = [deque() for _ in parts]
    while True:
        step: list[Draw] = []
        for (stream, number, samples), left in zip(parts, waiting, strict=True):
            taken: dict[int, Draw] = {}
            again: list[Draw] = []
            while len(taken) < number:
                place, encoded = left.popleft() if left else next(stream)
                if place not in taken:
                    taken[place] = place, encoded
                    continue
                again.append((place, encoded))
                if len(again) > 2 * samples:  # two passes brought no other one
                    message = (
                        f"training: a step draws {number} distinct samples, and fewer have a "
                        "response token; raise model.max_length or let a step draw fewer "
                        "(training.batch_size · accumulation)"
                    )
                    raise EmptySelectionError(message)
            left.extend(again)
            step.extend(taken.values())
        yield step


def even_out(weights: Weights, group: int) -> Weights:
    """Return a step's weights drawn towards their mean until Kish's number is at least ``group``.

    Their sum stays. Weights that are all 0 stay 0: such a step holds nothing of any sample.
    """
    mean, spread = float(weights.mean()), float(weights.std())
    if spread == 0 or len(weights) < group:
        return weights
    most = math.sqrt(max(0.0, len(weights) / group - 1)) * mean / spread
    return mean + min(1.0, most * (1 - 1e-9)) * (weights - mean)
