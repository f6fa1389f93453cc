"""Compute per-sample LoRA gradients by hooks in one backward pass, contracted layer by layer.

LoRA linear: y_t = W x_t + s B u_t with u_t = A x_t. With v_t = ∂ℓ/∂u_t and δ_t = ∂ℓ/∂(B u_t), both
of which autograd hands to a hook on the factor's output,

    ∂ℓ_i/∂A = Σ_t v_it x_itᵀ      ∂ℓ_i/∂B = Σ_t δ_it u_itᵀ      (sample i of the batch)

is one batched matrix product of rank-r size per factor. It takes the place of the weight gradient
of a training step, which is its sum over i, so it costs no additional arithmetic, and yields dots
with k references, norms and Adam-aware forms at once (``curation/gradients/contraction.py``); no
gradient is kept. Padding contributes nothing: its δ and v are zero. The loss of a batch must be the
SUM of its samples' losses, so that no sample's gradient depends on its neighbours.

The graph begins where that of a training step begins: at the first output of a factor A.

References:
    Z. Zhao et al., CLUES, NeurIPS 2024, section 3.2, https://arxiv.org/abs/2507.03004
    M. Xia et al., LESS, ICML 2024, section 3.2, https://arxiv.org/abs/2402.04333
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedwinnow.curation.errors import ModelError, RunError
from fedwinnow.curation.model.hook_support import why_no_hooks
from fedwinnow.curation.model.modes import frozen_weights

Consume = Callable[[str, Float[Tensor, "batch rows columns"]], None]
"""Reads each factor's per-sample gradients, at least float32, in the order of the backward pass."""

AXES = 3
"""Batch, tokens, features."""


@contextmanager
def sample_gradients(
    model: nn.Module,
    layers: Mapping[str, Any],
    consume: Consume,
    *,
    training: bool = False,
    own_sum: bool = True,
) -> Iterator["SeenFactors"]:
    """Hand ``consume`` the per-sample gradients of the backward passes inside the block.

    Inside, the model is in eval mode and all its parameters are frozen; afterwards it is as before.
    Call :meth:`SeenFactors.check` after each backward pass.

    Args:
        model: The model that is run.
        layers: Module name → PEFT LoRA layer.
        consume: Called as ``consume("NAME.A" or "NAME.B", gradients)``.
        training: Leave mode and trainable parameters as they are, for signals of training steps.
            A factor's own gradient is then the sum of its samples', which differs from
            autograd's by rounding. Layers that a checkpoint computes again may run forward twice.
        own_sum: Whether a trained factor gets the sum of its samples' gradients; else it gets none.

    Raises:
        ModelError: an adapter that cannot be measured; see :func:`check_hookable`.
    """
    check_hookable(model, layers, from_zero=not own_sum)
    expected = tuple(f"{name}.{f}" for name in layers for f in "AB")
    firing = SeenFactors(expected=expected, recomputed=training)
    with ExitStack() as stack:
        if not training:
            stack.enter_context(frozen_weights(model))
        for name, layer in layers.items():
            for letter, factor in zip("AB", factors_of(layer), strict=True):
                trained = factor.weight.requires_grad and is_plain(factor)
                if trained:  # one product a factor and pass, not two
                    factor.forward = partial(_without_its_weight, factor)
                    stack.callback(delattr, factor, "forward")
                hook = _watch(f"{name}.{letter}", firing, consume, summed=trained and own_sum)
                stack.callback(factor.register_forward_hook(hook).remove)
        yield firing


@dataclass(slots=True, kw_only=True)
class SeenFactors:
    """Count of the passes in which each factor was seen, for the current batch."""

    expected: tuple[str, ...]
    recomputed: bool = False
    """Whether a layer may run forward again, as a checkpoint makes it in the backward pass."""
    forward: dict[str, int] = field(default_factory=dict)
    backward: dict[str, int] = field(default_factory=dict)

    def check(self) -> None:
        """Check that every factor fired exactly once, forward and backward, and reset the counts.

        Where layers are ``recomputed``, a factor may have fired more than once in the forward pass.

        Raises:
            RunError: a module was skipped or ran twice, so its numbers would be wrong.
        """
        for direction, counts in (("forward", self.forward), ("backward", self.backward)):
            again = self.recomputed and direction == "forward"
            for name in self.expected:
                if counts.get(name, 0) != 1 and not (again and name in counts):
                    message = (
                        f"module {name} fired {counts.get(name, 0)} times in the {direction} pass, "
                        "expected once; per-sample gradients need every adapted layer to run "
                        "exactly once (no shared, skipped or recomputed layers)"
                    )
                    raise RunError(message)
        self.forget()

    def forget(self) -> None:
        """Reset the counts, whatever was seen."""
        self.forward.clear()
        self.backward.clear()


def check_hookable(model: nn.Module, layers: Mapping[str, Any], *, from_zero: bool = False) -> None:
    """Refuse every model and adapter whose per-sample gradients hooks cannot compute.

    Args:
        model: The model that is run.
        layers: Module name → PEFT LoRA layer.
        from_zero: Whether B may be 0 everywhere, as where training begins.

    Raises:
        ModelError: hooks would not see the model's layers, hooks are left on a factor, or
            :func:`why_no_gradients` gives a reason.
    """
    problem = why_no_gradients(layers, from_zero=from_zero)
    why = why_no_hooks(model)
    if why:
        problem = (
            f"{why}; measure the model before that is done to it, or set "
            "measuring.backend = 'probe'"
        )
    for name, layer in layers.items():
        problem = problem or _hooks_left(name, layer)
    if problem:
        message = f"per-sample gradients: {problem}"
        raise ModelError(message)


def why_no_gradients(layers: Mapping[str, Any], *, from_zero: bool = False) -> str:
    """Return why no backend can give an adapter's per-sample gradients; "" where they can.

    Reasons: no LoRA layer, no or several active adapters, a disabled or merged adapter, DoRA or
    another variant, adapter biases, an adapter of an embedding, shared factors, or B = 0
    everywhere, unless ``from_zero`` allows it.
    """
    if not layers:
        return "the model has no LoRA layer"
    for name, layer in layers.items():
        if problem := _problem(name, layer):
            return problem
    weights = [_local(factor.weight) for layer in layers.values() for factor in factors_of(layer)]
    if len({weight.data_ptr() for weight in weights}) != len(weights):
        return "two layers share a factor, so its norm is not the sum of theirs; untie them"
    if not from_zero and not any(bool(weight.any()) for weight in weights[1::2]):
        return "B = 0 in every layer, so the gradient of A is zero; warm up first"
    return ""


def _local(weight: Tensor) -> Tensor:
    """Return a weight, or the part of a sharded one that this process holds."""
    part: Tensor = weight.to_local() if hasattr(weight, "to_local") else weight
    return part


def _problem(name: str, layer: Any) -> str:  # noqa: ANN401, PLR0911 - PEFT has no types; one line a refusal
    """Return what is wrong with one layer, and the cure; "" where nothing is."""
    active = layer.active_adapters
    if len(active) != 1:
        return f"exactly one adapter must be active in {name}, got {len(active)}; set one"
    (key,) = active
    if layer.disable_adapters:
        return f"the adapter of {name} is disabled, so it would not be measured; enable it"
    if layer.merged:
        return f"the adapter of {name} is merged into the base; unmerge it first"
    if layer.use_dora.get(key):
        return f"DoRA in {name} runs its factors on an identity matrix too; use plain LoRA"
    if key in layer.lora_variant:
        kind = type(layer.lora_variant[key]).__name__
        return f"{name} has the LoRA variant {kind}; use plain LoRA"
    if layer.lora_bias.get(key):
        return f"biases of the adapter of {name} are not measured; set lora_bias = False"
    if key not in layer.lora_A or not all(isinstance(f, nn.Linear) for f in factors_of(layer)):
        return f"the adapter {key!r} of {name} has no linear factors; adapt linear layers only"
    return ""


def _hooks_left(name: str, layer: Any) -> str:  # noqa: ANN401 - PEFT's layers have no types
    if any(f._forward_hooks or f._backward_hooks for f in factors_of(layer)):  # noqa: SLF001 - torch has no other way to ask
        return f"hooks are left on the factors of {name} and would see every pass; remove them"
    return ""


def factors_of(layer: Any) -> tuple[Any, Any]:  # noqa: ANN401 - PEFT's layers have no types
    """Return modules A and B of the active adapter."""
    (key,) = layer.active_adapters
    return layer.lora_A[key], layer.lora_B[key]


def is_plain(factor: nn.Linear) -> bool:
    """Return whether the factor runs the code of ``nn.Linear``, with no forward of its own."""
    return type(factor) is nn.Linear and "forward" not in vars(factor)


def _without_its_weight(factor: nn.Linear, given: Tensor) -> Tensor:
    """Return the factor's output without a gradient to its weight, which :class:`_Seen` gives."""
    return nn.functional.linear(given, factor.weight.detach())


def _watch(
    name: str, firing: SeenFactors, consume: Consume, *, summed: bool
) -> Callable[..., Tensor | None]:
    def took(gradient: Tensor, given: Tensor) -> Tensor:
        firing.backward[name] = firing.backward.get(name, 0) + 1
        mixed = torch.is_autocast_enabled(gradient.device.type)
        with torch.autocast(gradient.device.type, enabled=False) if mixed else nullcontext():
            products = _products(gradient, given)  # autograd records nothing in a backward pass
            consume(name, products)
        return products

    def forward(factor: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        firing.forward[name] = firing.forward.get(name, 0) + 1
        if not torch.is_grad_enabled():
            return None
        if inputs[0].ndim != AXES:
            message = (
                f"per-sample gradients: {name} runs on {inputs[0].ndim} axes, expected batch, "
                "tokens and features; leave routed experts out of adapter.targets"
            )
            raise ModelError(message)
        weight = factor.get_parameter("weight") if summed else None
        if weight is None and not output.requires_grad:
            output.requires_grad_()  # nothing above requires a gradient: the graph begins here
        seen: Tensor = _Seen.apply(output, inputs[0].detach(), weight, took)  # type: ignore[no-untyped-call]  # torch's
        return seen

    return forward


class _Seen(torch.autograd.Function):
    """Identity on a factor's output; its backward pass hands gradient and input to ``took``.

    The input is saved as autograd saves any, so a checkpoint drops it and computes it again. A
    weight, if given, gets the sum of its samples' gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own object
        output: Tensor,
        given: Tensor,
        weight: Tensor | None,
        took: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(given)
        ctx.took, ctx.kind = took, None if weight is None else weight.dtype
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, Tensor | None, None]:  # noqa: ANN401 - torch's own form
        products = ctx.took(gradients[0], *ctx.saved_tensors)
        own = None if ctx.kind is None else products.sum(dim=0).to(ctx.kind)
        return gradients[0], None, own, None


def _products(
    gradient: Float[Tensor, "batch tokens rows"], given: Float[Tensor, "batch tokens columns"]
) -> Float[Tensor, "batch rows columns"]:
    """Return g[i, o, c] = Σ_t gradient[i, t, o] · given[i, t, c].

    The sum is taken in at least float32: CUDA sums products of half precision in float32 by
    itself; elsewhere they are widened first.
    """
    kind = torch.promote_types(gradient.dtype, torch.float32)
    if gradient.is_cuda and torch.version.cuda and gradient.dtype == given.dtype != kind:
        return torch.bmm(gradient.transpose(1, 2), given, out_dtype=kind)
    return torch.bmm(gradient.to(kind).transpose(1, 2), given.to(kind))
