"""Compute per-sample LoRA gradients without hooks, by a probe in the forward pass itself.

Every factor F (A or B of a layer) runs as F + E_i for sample i, with E_i = 0 of F's own shape:

    u_t = A x_t + E_i x_t        y_t = B u_t + E'_i u_t

The losses do not change, and plain autograd gives, exactly,

    ∂(Σ_j ℓ_j)/∂E_i = ∂ℓ_i/∂F        so that ⟨∂ℓ_i/∂F, G⟩ = d/dε ℓ_i(F + εG) at ε = 0

Nothing but this definition is needed, so it holds under ``torch.compile`` (hooks registered after
it are ignored), FSDP (E is never sharded or reduced) and activation checkpointing (a recomputed
layer adds nothing twice); a layer that runs twice gets the sum of both, norm included. It costs
more than hooks: the per-sample gradients of a batch are in memory at once (batch · adapter
numbers), and the forward pass takes 2 T r (d_in + d_out) additional operations a sample and layer.

References:
    B. Pearlmutter, Fast Exact Multiplication by the Hessian, Neural Computation 6, 1994 (a
    derivative along G as one by ε)
    A. Paszke et al., PyTorch, NeurIPS 2019, section 4.3, https://arxiv.org/abs/1912.01703
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedwinnow.curation.errors import ModelError, RunError
from fedwinnow.curation.gradients.hooks import AXES, Consume, factors_of, why_no_gradients
from fedwinnow.curation.model.modes import frozen_weights


class Probed(nn.Linear):
    """A LoRA factor with a zero matrix for each sample beside its weight.

    Only the class of an ``nn.Linear`` is changed for a while: parameters, names and state of the
    module stay what they are, so optimizers, shards and compiled code find what they know.
    """

    offset: Tensor | None
    """(batch, rows, columns), all zero; its gradient is the per-sample gradient. None: no probe."""

    def forward(self, given: Tensor) -> Tensor:
        """Return the factor's output, with the offsets in its graph."""
        made = nn.Linear.forward(self, given)
        offset = self.offset
        if offset is None or not torch.is_grad_enabled():
            return made
        if given.ndim != AXES:
            message = (
                f"per-sample gradients: a factor runs on {given.ndim} axes, expected batch, "
                "tokens and features; leave routed experts out of adapter.targets"
            )
            raise ModelError(message)
        with torch.autocast(given.device.type, enabled=False):  # contracted in at least float32
            zero = torch.bmm(given.detach().to(offset.dtype), offset.transpose(1, 2))
        return made + zero.to(made.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Offsets of all factors: set before a forward pass, read after the backward pass."""

    factors: Mapping[str, Probed]
    """By "NAME.A" and "NAME.B"."""

    def begin(self, samples: int) -> None:
        """Set new zero offsets for a batch of ``samples`` samples."""
        for factor in self.factors.values():
            weight = factor.weight
            factor.offset = torch.zeros(
                (samples, *weight.shape),
                dtype=torch.promote_types(weight.dtype, torch.float32),
                device=weight.device,
                requires_grad=True,
            )

    def drop(self) -> None:
        """Free the offsets of a batch that will not be finished."""
        for factor in self.factors.values():
            factor.offset = None

    def end(self, consume: Consume) -> None:
        """Hand on every factor's per-sample gradients after the backward pass, and free them.

        Args:
            consume: Called as ``consume("NAME.A" or "NAME.B", gradients)``.

        Raises:
            RunError: a layer did not run, so its part would be missing.
        """
        for name, factor in self.factors.items():
            offset, factor.offset = factor.offset, None
            if offset is None or offset.grad is None:
                message = (
                    f"module {name} did not run, or not with this batch; per-sample gradients need "
                    "every adapted layer to run in each pass"
                )
                raise RunError(message)
            with torch.no_grad():
                consume(name, offset.grad)


@contextmanager
def with_probes(
    model: nn.Module, layers: Mapping[str, Any], *, training: bool = False
) -> Iterator[Probe]:
    """Probe the adapter's factors inside the block; restore the model after it.

    Args:
        model: The model that is run.
        layers: Module name → PEFT LoRA layer.
        training: Leave mode and trainable parameters as they are, for signals of training steps;
            else the model is in eval mode and all its parameters are frozen.

    Raises:
        ModelError: an adapter that cannot be measured; see :func:`why_no_gradients`.
    """
    problem = why_no_gradients(layers)
    linears: dict[str, Any] = {}
    if not problem:
        for name, layer in layers.items():
            linears |= {f"{name}.{k}": f for k, f in zip("AB", factors_of(layer), strict=True)}
        strange = [name for name, factor in linears.items() if type(factor) is not nn.Linear]
        if strange:
            kind = type(linears[strange[0]]).__name__
            problem = f"{strange[0]} is a {kind}, which no probe fits; use plain LoRA factors"
    if problem:
        message = f"per-sample gradients: {problem}"
        raise ModelError(message)
    with ExitStack() as stack:
        if not training:
            stack.enter_context(frozen_weights(model))
        for factor in linears.values():
            stack.callback(_restore, factor)
            factor.__class__ = Probed
            factor.offset = None
        yield Probe(factors=linears)


def _restore(factor: Any) -> None:  # noqa: ANN401 - a module whose class changes
    if type(factor) is Probed:
        changing: Any = factor
        del changing.offset
        changing.__class__ = nn.Linear
