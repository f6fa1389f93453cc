"""Precondition references as DataInf does, so that an influence is one more dot product.

For a factor with gradients g_i of n reference anchors, v_k the mean of domain k, d its parameters:

    λ   = 0.1 · Σ_i ‖g_i‖² / (n d)
    u_k = (v_k − (1/n) Σ_i g_i ⟨g_i, v_k⟩ / (λ + ‖g_i‖²)) / λ          so  u_k ≈ H⁻¹ v_k

u_k depends on public anchors alone, so a private sample's influence ⟨g, u_k⟩ costs no more than its
dot. Two more backward passes over the reference anchors make u.

Differs from the paper, which averages over the training samples: those are private here.

Reference:
    Y. Kwon et al., DataInf: Efficiently Estimating Data Influence in LoRA-tuned LLMs and Diffusion
    Models, ICLR 2024, section 3 (equation 5), https://arxiv.org/abs/2310.00902
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fedwinnow.client.measuring.batching import Places, run_in_batches
from fedwinnow.curation.gradients.per_sample import Way, per_sample_gradients
from fedwinnow.curation.model.lora_model import LoadedModel
from fedwinnow.curation.model.token_losses import Batch, sample_losses
from fedwinnow.curation.tokens.tokenization import Encoding

DAMPING = 0.1
"""λ as a share of a factor's mean squared gradient entry (section 3 of the paper)."""

Factors = Mapping[str, Float[Tensor, "k parameters"]]


@dataclass(slots=True, kw_only=True)
class _Products:
    """⟨g_i, v_k⟩ and ‖g_i‖² by factor, in the order of the batches."""

    references: Factors
    dots: dict[str, list[Tensor]] = field(default_factory=dict)
    squares: dict[str, list[Tensor]] = field(default_factory=dict)

    def __call__(self, name: str, gradients: Float[Tensor, "batch rows columns"]) -> None:
        flat = gradients.flatten(1)
        self.dots.setdefault(name, []).append(flat @ self.references[name].T)
        self.squares.setdefault(name, []).append((flat * flat).sum(dim=1))

    def begin(self, done: int) -> None:
        """Ignore how many samples are done: no product depends on it."""

    def forget(self) -> None:
        self.dots.clear()
        self.squares.clear()


@dataclass(slots=True, kw_only=True)
class _Sums:
    """Σ_i c_ki g_i by factor."""

    weights: Mapping[str, Float[Tensor, "samples k"]]
    start: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, gradients: Float[Tensor, "batch rows columns"]) -> None:
        flat = gradients.flatten(1)
        added = self.weights[name][self.start : self.start + len(flat)].T @ flat
        self.sums[name] = self.sums[name] + added if name in self.sums else added

    def begin(self, done: int) -> None:
        self.start = done

    def forget(self) -> None:
        self.sums.clear()


def influence_directions(
    loaded: LoadedModel,
    encodings: Sequence[Encoding],
    means: Factors,
    *,
    batch_tokens: int,
    way: Way = "hooks",
) -> dict[str, Float[Tensor, "k parameters"]]:
    """Compute u_k of every factor; zero where a factor has no gradient at all.

    Args:
        loaded: Model with the adapter of the checkpoint.
        encodings: Of the reference anchors; each has a target.
        means: v_k by factor.
        batch_tokens: Tokens of a batch, padding included.
        way: How per-sample gradients are taken.
    """
    products, layers = _Products(references=means), loaded.layers_with(means)
    _each_batch(loaded, encodings, products, batch_tokens, way, layers)
    damping, weights, number = {}, {}, len(encodings)
    for name, reference in means.items():
        squares = torch.cat(products.squares[name])
        damping[name] = DAMPING * float(squares.sum()) / (number * reference.shape[1])
        divisor = (damping[name] + squares)[:, None]
        weights[name] = torch.cat(products.dots[name]) / divisor.clamp_min(1e-38) / number
    sums = _Sums(weights=weights)
    _each_batch(loaded, encodings, sums, batch_tokens, way, layers)
    return {
        name: (reference - sums.sums[name]) / damping[name]
        if damping[name] > 0
        else torch.zeros_like(reference)
        for name, reference in means.items()
    }


def _each_batch(
    loaded: LoadedModel,
    encodings: Sequence[Encoding],
    consume: _Products | _Sums,
    batch_tokens: int,
    way: Way,
    layers: Mapping[str, Any],
) -> None:
    """Run backward passes over all encodings, longest first; tell ``consume`` how many are done."""
    done = 0
    with per_sample_gradients(way, loaded, layers, consume) as source:

        def run(places: Places, batch: Batch) -> None:
            nonlocal done
            consume.begin(done)
            source.begin(len(places))
            source.backward(sample_losses(loaded.model, batch))
            done += len(places)

        def forget() -> None:
            nonlocal done
            done = 0
            consume.forget()
            source.drop()

        run_in_batches(
            loaded, encodings, run, forget=forget, adds_up=True,
            batch_tokens=batch_tokens, kind=way, graph=True,
        )  # fmt: skip
