"""Plan length-bucketed batches: cut samples, longest first, into batches of least padding cost.

With lengths l_1 ≥ … ≥ l_n, a batch of samples i … j − 1 runs l_i (j − i) tokens, padding included.
Among all cuts into batches of at most ``budget`` tokens, none of which runs more than ``PADDED``
times its own, the plan takes one of least

    Σ_batches (l_i (j − i) + budget / FULL)

by dynamic programming from the end, for ``AHEAD`` samples at a time. The second term is the price
of one more batch: it keeps them about as large as the budget allows where padding is no reason.

Reference:
    R. Bellman, On the approximation of curves by line segments using dynamic programming, CACM 4,
    1961, https://doi.org/10.1145/366573.366611
"""

import numpy as np
from jaxtyping import Int

PADDED = 1.1
"""Largest ratio of a batch's tokens with padding to those without (the bar for ragged data)."""
FULL = 32
"""Tokens of a full batch over the price of one more batch: a choice."""
AHEAD = 4096
"""Samples planned at once; a longer pass plans anew after half of them."""


class Buckets:
    """Length-bucketed batches of a pass, whose budget may change on the way."""

    def __init__(self, lengths: Int[np.ndarray, " samples"]) -> None:
        """Sort the samples of a pass by their tokens, equal lengths in their order."""
        self._order = np.argsort(-lengths, kind="stable")
        self._falling = np.maximum(lengths[self._order], 1)
        self._budget, self._first, self._sizes = 0, 0, self._order[:0]

    def batch(self, start: int, budget: int) -> Int[np.ndarray, " batch"]:
        """Return the positions of the batch after ``start`` samples; empty after the last.

        A sample longer than the budget gets a batch of its own.

        Args:
            start: How many samples are in earlier batches.
            budget: Tokens of a batch, padding included, at least 1.
        """
        if start >= len(self._order):
            return self._order[:0]
        done, left = start - self._first, len(self._order) - start
        known = 0 <= done < len(self._sizes) and (
            done <= AHEAD // 2 or len(self._sizes) - done == left
        )
        if budget != self._budget or not known:
            self._budget, self._first = budget, start
            self._sizes = _cut(self._falling[start : start + AHEAD], budget)
        return self._order[start : start + int(self._sizes[start - self._first])]


def plan_batches(
    lengths: Int[np.ndarray, " samples"], batch_tokens: int
) -> tuple[Int[np.ndarray, " batch"], ...]:
    """Return positions batch by batch, longest first: a pure function of its arguments.

    Args:
        lengths: Tokens of each sample.
        batch_tokens: Tokens of a batch, padding included, at least 1.
    """
    buckets, batches, start = Buckets(lengths), [], 0
    while start < len(lengths):
        batches.append(buckets.batch(start, batch_tokens))
        start += len(batches[-1])
    return tuple(batches)


def _cut(falling: Int[np.ndarray, " samples"], budget: int) -> Int[np.ndarray, " samples"]:
    """Return how many samples the best next batch holds from each start; of ties the larger."""
    number = len(falling)
    counts, tokens = np.arange(1, number + 1), np.cumsum(falling)
    sizes, rest = np.ones(number, dtype=np.int64), np.zeros(number + 1)
    for start in reversed(range(number)):
        longest = int(falling[start])
        end = start + min(number - start, max(1, budget // longest))
        padded = longest * counts[: end - start]
        own = tokens[start:end] - tokens[start] + longest
        costs = np.where(padded > PADDED * own, np.inf, padded + rest[start + 1 : end + 1])
        sizes[start] = len(costs) - int(costs[::-1].argmin())
        rest[start] = costs[sizes[start] - 1] + budget / FULL
    return sizes
