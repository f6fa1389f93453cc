"""Per-sample LoRA gradients in one batched backward pass: contracted layer by layer, never kept.

LoRA linear: y_t = W x_t + s B u_t with u_t = A x_t. With v_t = ∂ℓ/∂u_t and δ_t = ∂ℓ/∂(B u_t), both
of which autograd hands to a hook on the factor's output,

    ∂ℓ_i/∂A = Σ_t v_it x_itᵀ      ∂ℓ_i/∂B = Σ_t δ_it u_itᵀ      (sample i of the batch)

is one batched matrix product of rank-r size per factor. It replaces the weight gradient of a
training step, so it costs no additional arithmetic, and yields dots with k references, norms and
Adam-aware forms at once. Padding contributes nothing: its δ and v are zero. The loss of a batch
must be the SUM of its samples' losses, so that no sample's gradient depends on its neighbours.

References:
    Z. Zhao et al., CLUES, NeurIPS 2024, section 3.2, https://arxiv.org/abs/2507.03004
    M. Xia et al., LESS, ICML 2024, section 3.2 (Adam-aware), https://arxiv.org/abs/2402.04333
    D. Kingma, J. Ba, Adam, ICLR 2015, algorithm 1, https://arxiv.org/abs/1412.6980
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedwinnow.curation.errors import ModelError, RunError

BETAS = (0.9, 0.999)
"""Decay rates of Adam's moments."""
EPSILON = 1e-8
"""Added to √v̂, outside the root."""

Consume = Callable[[str, Float[Tensor, "batch rows columns"]], None]
"""Told of each factor's per-sample gradients, float32, during the backward pass."""


@contextmanager
def sample_gradients(
    model: nn.Module, layers: Mapping[str, Any], consume: Consume
) -> Iterator["Firing"]:
    """Watch the backward passes inside the block; the model is as before outside.

    Inside, the model is in eval mode, all its parameters are frozen, and the embedding's output
    carries the graph. Call :meth:`Firing.check` after each backward pass.

    Args:
        model: The model that is run.
        layers: Module name → PEFT LoRA layer.
        consume: Called as ``consume("NAME.A" or "NAME.B", gradients)``.

    Raises:
        ModelError: an adapter that cannot be measured: DoRA, merged, disabled, more than one,
            shared factors, B = 0 everywhere, or a compiled model.
    """
    refuse(model, layers)
    firing = Firing(expected=tuple(f"{name}.{f}" for name in layers for f in "AB"))
    training = model.training
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    handles = []
    try:
        model.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)  # noqa: FBT003 - torch's own form
        embedding = model.get_input_embeddings()  # type: ignore[operator]  # every causal LM has it
        handles.append(embedding.register_forward_hook(_carry_graph))
        for name, layer in layers.items():
            (key,) = layer.active_adapters
            for letter, factor in (("A", layer.lora_A[key]), ("B", layer.lora_B[key])):
                hook = _watch(f"{name}.{letter}", firing, consume)
                handles.append(factor.register_forward_hook(hook))
        yield firing
    finally:
        for handle in handles:
            handle.remove()
        for parameter, grad in wanted.items():
            parameter.requires_grad_(grad)
        model.train(training)


@dataclass(slots=True, kw_only=True)
class Firing:
    """Which factors were seen in the current batch."""

    expected: tuple[str, ...]
    forward: dict[str, int] = field(default_factory=dict)
    backward: dict[str, int] = field(default_factory=dict)

    def check(self) -> None:
        """Assert that every factor fired exactly once, forward and backward, then start anew.

        Raises:
            RunError: a module was skipped or ran twice, so its numbers would be wrong.
        """
        for direction, counts in (("forward", self.forward), ("backward", self.backward)):
            for name in self.expected:
                if counts.get(name, 0) != 1:
                    message = (
                        f"module {name} fired {counts.get(name, 0)} times in the {direction} pass, "
                        "expected once; per-sample gradients need every adapted layer to run "
                        "exactly once (no shared, skipped or recomputed layers)"
                    )
                    raise RunError(message)
        self.forward.clear()
        self.backward.clear()


def refuse(  # noqa: C901 - one line for each thing that cannot be measured
    model: nn.Module, layers: Mapping[str, Any]
) -> None:
    """Raise a :class:`ModelError` for every adapter whose gradients this file cannot give."""
    problem = ""
    factors = [
        getattr(layer, kind)[key].weight
        for layer in layers.values()
        for kind in ("lora_A", "lora_B")
        for key in layer.active_adapters
    ]
    if not layers:
        problem = "the model has no LoRA layer"
    elif any(hasattr(part, "_orig_mod") for part in model.modules()):
        problem = "a compiled model ignores hooks; measure the model before torch.compile"
    elif any(len(layer.active_adapters) != 1 for layer in layers.values()):
        problem = "exactly one adapter must be active"
    elif any(layer.disable_adapters for layer in layers.values()):
        problem = "the adapter is disabled, so it would not be measured; enable it"
    elif any(layer.merged for layer in layers.values()):
        problem = "the adapter is merged into the base; unmerge it first"
    elif any(any(layer.use_dora.values()) for layer in layers.values()):
        problem = "DoRA runs its factors on an identity matrix too; use plain LoRA"
    elif any(
        layer.lora_bias.get(key) for layer in layers.values() for key in layer.active_adapters
    ):
        problem = "biases of the adapter are not measured; set lora_bias = False"
    elif len({factor.data_ptr() for factor in factors}) != len(factors):
        problem = "two layers share a factor; its norm is not the sum of theirs"
    elif not any(bool(factor.any()) for factor in factors[1::2]):
        problem = "B = 0 in every layer, so the gradient of A is zero; warm up first"
    if problem:
        message = f"per-sample gradients: {problem}"
        raise ModelError(message)


@dataclass(slots=True, kw_only=True)
class WeightedSums:
    """Collects Σ_i w_ji g_i for rows j of weights, and Σ_i q_i g_i² for Adam's second moment."""

    weights: Float[Tensor, "rows batch"]
    """Of the current batch; set before each backward pass."""
    square_weights: Float[Tensor, " batch"]
    sums: dict[str, Float[Tensor, "rows parameters"]] = field(default_factory=dict)
    squares: dict[str, Float[Tensor, " parameters"]] = field(default_factory=dict)

    def __call__(self, name: str, gradients: Float[Tensor, "batch rows columns"]) -> None:
        """Add one factor's gradients of one batch."""
        flat = gradients.flatten(1)
        added, squared = self.weights @ flat, self.square_weights @ flat.square()
        if name in self.sums:
            added += self.sums[name]
            squared += self.squares[name]
        self.sums[name], self.squares[name] = added, squared


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Adam's moments after ``count`` steps, by factor; not bias-corrected."""

    first: Mapping[str, Float[Tensor, " parameters"]]
    second: Mapping[str, Float[Tensor, " parameters"]]
    count: int


def adam_direction(
    gradients: Float[Tensor, "batch parameters"],
    first: Float[Tensor, " parameters"],
    second: Float[Tensor, " parameters"],
    count: int,
) -> Float[Tensor, "batch parameters"]:
    """Γ(g) = m̂ / (√v̂ + ε) after one virtual Adam step on g from moments of ``count`` steps.

    m̂ = (β₁ m + (1 − β₁) g) / (1 − β₁^(count+1)), v̂ likewise with β₂ and g².

    Differs from the papers' code, which puts ε inside the root and skips the bias correction.
    """
    beta, gamma = BETAS
    steps = count + 1
    mean = torch.lerp(gradients, first, beta).div_(1 - beta**steps)
    spread = torch.lerp(gradients.square(), second, gamma).div_(1 - gamma**steps)
    return mean.div_(spread.sqrt_().add_(EPSILON))


@dataclass(slots=True, kw_only=True)
class Contraction:
    """Dots with k references, norms and Adam-aware forms of a batch, summed over layers."""

    references: Mapping[str, Float[Tensor, "k parameters"]]
    moments: Moments | None = None
    """None leaves the Adam-aware forms out."""
    plain: bool = True
    """Whether plain dots and norms are wanted."""
    dots: Any = 0.0
    squares: Any = 0.0
    adam_dots: Any = 0.0
    adam_squares: Any = 0.0

    def __call__(self, name: str, gradients: Float[Tensor, "batch rows columns"]) -> None:
        """Contract one factor's gradients and let them go."""
        flat = gradients.flatten(1)
        references = self.references[name]
        if self.plain:
            self.dots = self.dots + flat @ references.T
            # Σ_p g_ip² as a batched product: no squared copy of the gradients.
            self.squares = self.squares + torch.bmm(flat[:, None, :], flat[:, :, None])[:, 0, 0]
        if self.moments is not None:
            direction = adam_direction(
                flat, self.moments.first[name], self.moments.second[name], self.moments.count
            )
            self.adam_dots = self.adam_dots + direction @ references.T
            self.adam_squares = (
                self.adam_squares + torch.bmm(direction[:, None, :], direction[:, :, None])[:, 0, 0]
            )

    def reset(self) -> None:
        """Forget the batch."""
        self.dots = self.squares = self.adam_dots = self.adam_squares = 0.0


def _carry_graph(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:  # noqa: ANN401 - torch's hook
    return output.requires_grad_() if torch.is_grad_enabled() else output


def _watch(name: str, firing: Firing, consume: Consume) -> Callable[..., None]:
    def forward(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        firing.forward[name] = firing.forward.get(name, 0) + 1
        if not output.requires_grad:
            return
        (given,) = inputs

        def backward(gradient: Tensor) -> None:
            firing.backward[name] = firing.backward.get(name, 0) + 1
            with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
                # g[i, o, c] = Σ_t gradient[i, t, o] · given[i, t, c]
                consume(name, torch.bmm(gradient.float().transpose(1, 2), given.detach().float()))

        output.register_hook(backward)

    return forward
