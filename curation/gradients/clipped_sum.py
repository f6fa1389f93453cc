"""Clip each sample's gradient before a step sums them up.

With h_i the part of a step's gradient that comes from draw i of n, a step takes

    Σ_i h_i · min(1, C / (n ‖h_i‖)),

so that no single sample moves it by more than C / n, whatever its loss or the adapter that was
sent; a sample whose gradient is not finite adds nothing. The norm is over all trained factors
together. Gradients come from the hooks that measure (``curation/gradients/hooks.py``): they take
the place of the weight gradients of the same pass, and are held until it has ended,
n_batch · (parameters of the adapter) numbers.

Reference:
    M. Abadi et al., Deep Learning with Differential Privacy, CCS 2016, algorithm 1,
    https://arxiv.org/abs/1607.00133
    Differs from the paper: no noise is added here.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.gradients.hooks import (
    SeenFactors,
    factors_of,
    is_plain,
    sample_gradients,
)


@dataclass(kw_only=True)
class SampleClipper:
    """Per-sample gradients of one backward pass, until they are clipped and added up."""

    bound: float
    """Largest norm C of one sample's gradient, above 0."""
    weights: Mapping[str, nn.Parameter]
    """Factor → trained weight."""
    seen: SeenFactors
    held: dict[str, Tensor] = field(default_factory=dict)
    """Factor → gradients of the pass, (batch, rows, columns)."""

    def add_clipped(self, draws: int) -> Tensor:
        """Add the pass's clipped gradients to those of the weights; call it after each backward.

        Args:
            draws: Samples n that the whole optimizer step draws, over all its passes.

        Returns:
            The norm n ‖h_i‖ of each sample of the pass before clipping, float64, (batch,). It stays
            at the site.

        Raises:
            RunError: a module was skipped or ran twice.
        """
        self.seen.check()
        parts = [
            torch.linalg.vector_norm(one.flatten(1), dim=1, dtype=torch.float64)
            for one in self.held.values()
        ]
        norms = torch.stack(parts).square().sum(dim=0).sqrt() * draws
        finite = torch.isfinite(norms)  # a sample without a finite gradient adds nothing
        factors = (self.bound / norms[finite]).clamp(max=1.0)  # 1 where the norm is 0
        for name, gradients in self.held.items():
            weight = self.weights[name]
            share = factors.to(gradients.dtype)
            clipped = torch.einsum("b,brc->rc", share, gradients[finite]).to(weight.dtype)
            weight.grad = clipped if weight.grad is None else weight.grad + clipped
        self.held.clear()
        return norms


@contextmanager
def clipped_gradients(
    model: nn.Module, layers: Mapping[str, Any], bound: float
) -> Iterator[SampleClipper]:
    """Clip per-sample gradients of the backward passes inside the block.

    A pass leaves no gradient in the factors until :meth:`SampleClipper.add_clipped`. What a loss
    adds beside the samples (a proximal term) is not clipped: it is a function of the weights alone.

    Args:
        model: The model that is trained.
        layers: Module name → PEFT LoRA layer.
        bound: Largest norm of one sample's gradient, above 0.

    Raises:
        ModelError: hooks do not work on the model or the adapter, or a factor has a forward pass of
            its own.
    """
    weights: dict[str, nn.Parameter] = {}
    for name, layer in layers.items():
        for letter, factor in zip("AB", factors_of(layer), strict=True):
            if not is_plain(factor):
                message = (
                    f"training.sample_grad_norm: factor {letter} of {name} has a forward pass of "
                    "its own, so its samples' gradients cannot be clipped; set it to 0"
                )
                raise ModelError(message)
            if factor.weight.requires_grad:
                weights[f"{name}.{letter}"] = factor.weight
    held: dict[str, Tensor] = {}

    def take(name: str, gradients: Tensor) -> None:
        if name in weights:
            held[name] = gradients

    with sample_gradients(model, layers, take, training=True, own_sum=False) as seen:
        yield SampleClipper(bound=bound, weights=weights, seen=seen, held=held)
