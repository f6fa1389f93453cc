"""Estimate directional derivatives of losses from forward passes with two shifted adapters.

For a direction G in the space of an adapter's factors θ, step h and sample i:

    ⟨∇ℓ_i, G⟩ ≈ (ℓ_i(θ + h G) − ℓ_i(θ − h G)) / 2h        error: h² ℓ''' / 6 + rounding / h

A direction takes two plain forward passes with inference's memory; the base may have any number
format. The step along d moves the reference's own loss, whose gradient is G, by a set amount:

    h = min( δ / |⟨G, d⟩| , ‖θ‖ / 2‖d‖ )        δ = (3 u)^(1/3) / 10 nats

with u the unit roundoff of the number format, float32's at least (norms and softmax of transformers
compute in that). (3 u)^(1/3) is where both errors shrink together; the tenth was set by trying
steps on a tiny Llama (docs/measuring.md). In bfloat16 δ is 0.02 nats: the result is rather the loss
drop between two adapters than a derivative.

References:
    W. Press et al., Numerical Recipes, 3rd edition 2007, section 5.7 (the step)
    N. Wang et al., Z0-Inf, https://arxiv.org/abs/2510.11832 (influence by forward passes)
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Directions = Mapping[str, Float[Tensor, "k parameters"]]
"""Factor → k directions; every factor has the same k."""
Losses = Callable[[], Float[Tensor, " batch"]]
"""Function that returns the losses of a batch at the current weights."""


def predicted_change(kind: torch.dtype) -> float:
    """Return δ: how far a step moves the reference's loss, nats, in a model of that format."""
    eps = max(torch.finfo(kind).eps, torch.finfo(torch.float32).eps)
    return float((3 * eps / 2) ** (1 / 3) / 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class FiniteDifferences:
    """Two-sided differences along k directions; the weights are untouched between calls."""

    weights: Mapping[str, Tensor]
    """Factor → the parameter that the model runs with; moved in place and put back, bit for bit."""
    saved: Mapping[str, Tensor]
    directions: Directions
    steps: tuple[float, ...]
    """h of each direction; 0 where the direction is zero, and so the derivative."""

    @classmethod
    def along(
        cls,
        weights: Mapping[str, Tensor],
        directions: Directions,
        gradients: Directions,
        kind: torch.dtype,
    ) -> "FiniteDifferences":
        """Choose the steps for a model that computes in ``kind``, and build the differences.

        Args:
            weights: The parameters.
            directions: d_k.
            gradients: G_k, the gradient of the loss whose change sets the step.
            kind: Number format of the model's base.
        """
        size, steps = _size(list(weights.values())), []
        for k in range(len(next(iter(directions.values())))):
            parts = [(directions[n][k].double(), gradients[n][k].double()) for n in weights]
            norm = _size([one for one, _ in parts])
            slope = abs(sum(float((one * other).sum()) for one, other in parts))
            most = size / (2 * norm) if norm > 0 else 0.0
            wanted = predicted_change(kind) / slope if slope > 0 else most
            steps.append(min(wanted, most))
        saved = {name: weight.detach().clone() for name, weight in weights.items()}
        return cls(weights=weights, saved=saved, directions=directions, steps=tuple(steps))

    @torch.no_grad()
    def __call__(self, losses: Losses) -> Float[Tensor, "batch k"]:
        """Return the derivatives of a batch's losses along every direction."""
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


def _size(parts: list[Tensor]) -> float:
    return math.sqrt(sum(float(part.detach().double().square().sum()) for part in parts))
