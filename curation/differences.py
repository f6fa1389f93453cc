"""Directional derivatives of losses without a backward pass: the difference of two adapters.

For a direction G in the space of an adapter's factors θ, step h and sample i:

    ⟨∇ℓ_i, G⟩ ≈ (ℓ_i(θ + h G) − ℓ_i(θ − h G)) / 2h        error: h² ℓ''' / 6 + rounding / h

Two plain forward passes a direction, with inference's memory, on a base of any number format. The
step is chosen from the number format's unit roundoff u so that both errors shrink together:

    h = (3 u)^(1/3) · ‖θ‖ / ‖G‖

In bfloat16 that is a step of 0.28 of the adapter's own size: no derivative any more but the loss
drop between two adapters, which orders samples alike and differs in size.

References:
    W. Press et al., Numerical Recipes, 3rd edition 2007, section 5.7 (the step)
    N. Wang et al., Z0-Inf, https://arxiv.org/abs/2510.11832 (influence by forward passes)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Directions = Mapping[str, Float[Tensor, "k parameters"]]
"""Factor → k directions; every factor has the same k."""
Losses = Callable[[], Float[Tensor, " batch"]]
"""Losses of a batch at the weights as they are."""


def relative_step(kind: torch.dtype) -> float:
    """‖hG‖ / ‖θ‖ for a model that computes in ``kind``: (3 u)^(1/3), u the unit roundoff."""
    return float((3 * torch.finfo(kind).eps / 2) ** (1 / 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """Two-sided differences along k directions; the weights are untouched between calls."""

    weights: Mapping[str, Tensor]
    """Factor → the parameter that the model runs with; moved in place and put back, bit for bit."""
    saved: Mapping[str, Tensor]
    directions: Directions
    steps: tuple[float, ...]
    """h of each direction; 0 where the direction is zero, and so the derivative."""

    @classmethod
    def along(
        cls, weights: Mapping[str, Tensor], directions: Directions, kind: torch.dtype
    ) -> "Differences":
        """Differences with steps for a model that computes in ``kind``."""
        size = _norm([weight.detach() for weight in weights.values()])
        rows = len(next(iter(directions.values()), ()))
        norms = [_norm([directions[name][k] for name in weights]) for k in range(rows)]
        step = relative_step(kind)
        return cls(
            weights=weights,
            saved={name: weight.detach().clone() for name, weight in weights.items()},
            directions=directions,
            steps=tuple(step * size / norm if norm > 0 else 0.0 for norm in norms),
        )

    @torch.no_grad()
    def __call__(self, losses: Losses) -> Float[Tensor, "batch k"]:
        """The derivatives of a batch's losses along every direction."""
        found = []
        try:
            for k, step in enumerate(self.steps):
                above = self._at(k, step, losses)
                below = self._at(k, -step, losses)
                found.append((above - below) / (2 * step) if step > 0 else torch.zeros_like(above))
        finally:
            for name, weight in self.weights.items():
                weight.copy_(self.saved[name])
        return torch.stack(found, dim=1)

    def _at(self, k: int, step: float, losses: Losses) -> Float[Tensor, " batch"]:
        for name, weight in self.weights.items():
            direction = self.directions[name][k].to(weight).view_as(weight)
            weight.copy_(torch.add(self.saved[name], direction, alpha=step))
        return losses().double()


def _norm(parts: list[Tensor]) -> float:
    return float(sum(float(part.double().square().sum()) for part in parts) ** 0.5)
