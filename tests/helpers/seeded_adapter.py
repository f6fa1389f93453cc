"""Adapters of two modules whose entries are drawn from a seed."""

import torch

from fedwinnow.curation.datatypes import Adapter

SHAPES = {"q": (7, 6), "v": (5, 8)}


def make(seed: int, rank: int = 2, size: float = 1.0) -> Adapter:
    """A seeded adapter in float64, whose update grows with ``size``."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    return Adapter(
        base="base",
        a={name: normal(rank, inputs) for name, (_, inputs) in SHAPES.items()},
        b={name: size * normal(outputs, rank) for name, (outputs, _) in SHAPES.items()},
        scales=dict.fromkeys(SHAPES, 0.5 + rank),
    )
