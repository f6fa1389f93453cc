"""Draw training samples: a stream of passes over a site's samples that spans the rounds.

R rounds of S steps follow one plan of R · S steps, as the learning rate does
(``curation/learning_rate.py``).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from fedwinnow.curation.errors import EmptySelectionError, PluginError
from fedwinnow.curation.model.token_losses import Batch, collate
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.curation.tokens.tokenization import Encoding
from fedwinnow.strategies.interfaces.ordering import Order


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


def sample_stream(order: Order, seed: int, start: int) -> Iterator[int]:
    """Yield positions of samples, pass after pass without end, from draw ``start`` on.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBatch:
    """Samples of one forward pass."""

    batch: Batch
    weights: torch.Tensor
    """How much each counts, (batch,), float64."""
    places: tuple[int, ...]
    """Their positions among the samples that are trained on."""
    encodings: tuple[Encoding, ...]


def with_target(
    stream: Iterator[int], encoding: Callable[[int], Encoding], *, patience: int
) -> Iterator[tuple[int, Encoding]]:
    """Yield the draws that have a target, with their tokens; pass over the others.

    Gives up after ``2 · patience`` draws without a target.

    Raises:
        EmptySelectionError: no sample has one.
    """
    misses = 0
    for place in stream:
        encoded = encoding(place)
        if encoded.has_target:
            misses = 0
            yield place, encoded
            continue
        misses += 1
        if misses >= 2 * patience:  # two passes: one may begin in the middle of a shuffle
            message = (
                f"training: expected a sample with a response token, got none among {patience}; "
                "check columns.response or raise model.max_length"
            )
            raise EmptySelectionError(message)


def training_batches(
    stream: Iterator[int],
    encoding: Callable[[int], Encoding],
    *,
    weights: Float[np.ndarray, " samples"],
    size: int,
    patience: int,
) -> Iterator[TrainingBatch]:
    """Yield full batches of samples with a target, and their weights.

    Gives up after ``2 · patience`` draws without a target.
    """
    chosen: list[Encoding] = []
    places: list[int] = []
    for place, encoded in with_target(stream, encoding, patience=patience):
        chosen.append(encoded)
        places.append(place)
        if len(chosen) == size:
            yield TrainingBatch(
                batch=collate(chosen),
                weights=torch.tensor([float(weights[i]) for i in places], dtype=torch.float64),
                places=tuple(places),
                encodings=tuple(chosen),
            )
            chosen, places = [], []
