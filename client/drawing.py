"""Batches of a training round: what each forward pass of a step is drawn from the stream."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from fedwinnow.curation.errors import EmptySelectionError
from fedwinnow.curation.model.token_losses import Batch, collate
from fedwinnow.curation.model.tokenization import Encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One forward pass's samples."""

    batch: Batch
    weights: torch.Tensor
    """How much each counts, (batch,), float64."""
    places: tuple[int, ...]
    """Their positions among the samples that are trained on."""
    encodings: tuple[Encoding, ...]


def batches(
    stream: Iterator[int],
    encoding: Callable[[int], Encoding],
    *,
    weights: Float[np.ndarray, " samples"],
    size: int,
    patience: int,
) -> Iterator[Drawn]:
    """Full batches of samples with a target, and their weights.

    Gives up after ``2 · patience`` draws without a target.
    """
    chosen: list[Encoding] = []
    places: list[int] = []
    misses = 0
    for place in stream:
        encoded = encoding(place)
        if encoded.has_target:
            chosen.append(encoded)
            places.append(place)
            misses = 0
        else:
            misses += 1
        if misses >= 2 * patience:  # two passes: one may begin in the middle of a shuffle
            message = (
                f"training: expected a sample with a response token, got none among {patience}; "
                "check columns.response or raise model.max_length"
            )
            raise EmptySelectionError(message)
        if len(chosen) == size:
            yield Drawn(
                batch=collate(chosen),
                weights=torch.tensor([float(weights[i]) for i in places], dtype=torch.float64),
                places=tuple(places),
                encodings=tuple(chosen),
            )
            chosen, places = [], []
