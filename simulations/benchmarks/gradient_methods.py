"""Compute per-sample gradients in several ways, timed against each other on the same samples.

    plain      forward and backward of the batches into the LoRA weights, as in any training
    measure    ours, by hooks: dots with 8 references and norms of every sample
    last half  the same, of the last half of the transformer layers
    probe      the same as ``measure``, by a probe in the forward pass
    forward    dots alone, by two forward passes for each reference
    train      one round of training on all samples, with the optimizer
               (``client/training/local_training.py``)
    piggyback  the same round, which also collects the signals of ``measure`` (``piggyback.py``)
    loop       one sample a pass, its gradient flattened and kept, as the code of CLUES and LESS
    vmap       ``torch.func.vmap(grad)`` over each batch, contracted batch by batch

All encode and batch the samples by the same functions, with the same adapter. All but ``plain``,
``train`` and ``last half`` end with the same numbers. So that this holds for every step of
``piggyback``, both rounds of training run at a learning rate that changes no weight; the work is
the same.

Differs from the papers' code, to its favour: ``loop`` writes no file, runs the head at the
response's places only, and leaves out LESS' random projection. ``vmap`` runs attention by the plain
kernel, as the fused ones have no batching rule, and the head at every place.

References:
    Z. Zhao et al., CLUES, NeurIPS 2024, section 3.2, https://arxiv.org/abs/2507.03004
    M. Xia et al., LESS, ICML 2024, section 4.1, https://arxiv.org/abs/2402.04333
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedwinnow.client.measuring.measuring_pass import measure
from fedwinnow.client.measuring.references import References
from fedwinnow.client.training.local_training import train
from fedwinnow.client.training.watcher import Watch
from fedwinnow.curation.config.scoring import Backend
from fedwinnow.curation.config.training import TrainingSection
from fedwinnow.curation.model.lora_model import NAME, set_adapter
from fedwinnow.curation.model.token_losses import collate, sample_losses
from fedwinnow.simulations.benchmarks.piggyback import Piggyback
from fedwinnow.simulations.benchmarks.workload import COLUMNS, Bench
from fedwinnow.strategies.interfaces.ordering import Order
from fedwinnow.strategies.registry import build

STILL = 1e-12
"""Learning rate below the rounding of float32 weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result of one row: dot products, norms and bytes kept."""

    dots: Float[np.ndarray, "samples references"] | None
    """⟨g_i, G_k⟩, float32; None where a row computes none."""
    norms: Float[np.ndarray, " samples"] | None
    kept: int
    """Bytes kept for all samples together, without ids."""
    unit: bool = False
    """Whether dots are divided by the sample's norm."""


Row = Callable[[Bench], Outcome]


def train_plain(bench: Bench) -> Outcome:
    """Run forward and backward of the batches into the LoRA weights."""
    for _, batch in bench.batches():
        sample_losses(bench.loaded.model, batch).sum().backward()
        bench.loaded.model.zero_grad(set_to_none=True)
    return Outcome(dots=None, norms=None, kept=0)


def measure_by_hooks(bench: Bench) -> Outcome:
    """Measure every sample by hooks."""
    return _measured(bench, bench.references, "hooks")


def measure_last_half(bench: Bench) -> Outcome:
    """Measure every sample by hooks, with gradients of the last half of the layers alone."""
    return _measured(bench, bench.last_half, "hooks")


def measure_by_probe(bench: Bench) -> Outcome:
    """Measure every sample by a probe."""
    return _measured(bench, bench.references, "probe")


def measure_forward_only(bench: Bench) -> Outcome:
    """Measure every sample without a backward pass, which gives no norms."""
    return _measured(bench, bench.references, "forward", frozenset({"dot"}))


def _measured(
    bench: Bench, references: References, backend: Backend, columns: frozenset[str] = COLUMNS
) -> Outcome:
    table = measure(
        bench.loaded,
        bench.samples,
        bench.options,
        columns=columns,
        checkpoint=1,
        references=references,
        contrast=(),
        contrast_prompts=0,
        backend=backend,
    )
    kept = table.status.nbytes + sum(values.nbytes for values in table.columns.values())
    return Outcome(dots=table.columns["dot"], norms=table.columns.get("norm"), kept=kept)


def train_round(bench: Bench) -> Outcome:
    """Train one round on every sample."""
    _round(bench, None)
    return Outcome(dots=None, norms=None, kept=0)


def train_clipped(bench: Bench) -> Outcome:
    """Train one round on every sample, each sample's gradient clipped by itself."""
    _round(bench, None, clip=1.0)
    return Outcome(dots=None, norms=None, kept=0)


def piggyback(bench: Bench) -> Outcome:
    """Train one round on every sample and collect signals in its own passes."""
    watch = Piggyback(samples=bench.samples, columns=COLUMNS, references=bench.references)
    _round(bench, watch)
    seen = watch.visits()
    kept = seen.steps.nbytes + sum(values.nbytes for values in seen.columns.values())
    return Outcome(dots=seen.columns["dot"], norms=seen.columns["norm"], kept=kept)


def _round(bench: Bench, watch: Watch | None, clip: float = 0.0) -> None:
    """Train on every sample once, longest first, in batches of the mean size of measuring."""
    lengths = np.array([len(one.prompt) + len(one.response) for one in bench.samples])
    number, room = len(lengths), max(1, int(bench.options.batch_tokens / lengths.mean()))
    size = max(one for one in range(1, number + 1) if number % one == 0 and one <= room)
    train(
        bench.loaded,
        bench.samples,
        adapter=bench.adapter,
        section=TrainingSection(batch_size=size, sample_grad_norm=clip),
        steps=number // size,
        step_offset=0,
        total_steps=number // size,
        order=Order(indices=np.argsort(-lengths, kind="stable")),
        objective=build("objective", "sft", {}),
        learning_rate=STILL,
        schedule="constant",
        seed=0,
        options=bench.options,
        watch=watch,
    )
    set_adapter(bench.loaded, bench.adapter)


def one_by_one(bench: Bench) -> Outcome:
    """Run one sample a pass; keep every gradient on the CPU until the end."""
    weights, model = factors(bench), bench.loaded.model
    kept: list[Tensor] = []
    for encoding in bench.encodings():
        model.zero_grad(set_to_none=True)
        sample_losses(model, collate([encoding]).to(bench.loaded.device)).sum().backward()
        flat = [required_gradient(weight.grad).flatten() for weight in weights.values()]
        kept.append(torch.cat(flat).cpu())
    model.zero_grad(set_to_none=True)
    directions = [bench.references.means[factor].cpu() for factor in weights]
    sizes = [weight.numel() for weight in weights.values()]
    dots = torch.stack(
        [
            sum(mean @ part for mean, part in zip(directions, gradient.split(sizes), strict=True))
            for gradient in kept
        ]
    )
    norms = torch.stack([gradient.norm() for gradient in kept])
    return Outcome(
        dots=dots.numpy(), norms=norms.numpy(), kept=sum(gradient.nbytes for gradient in kept)
    )


def vmap_gradients(bench: Bench) -> Outcome:
    """Run ``vmap(grad)`` of the loss of one sample over each batch."""
    weights, names = factors(bench), parameter_names(bench)
    held = {names[factor]: weight.detach() for factor, weight in weights.items()}
    dots = np.zeros((len(bench.samples), len(bench.references.names)), dtype=np.float32)
    norms = np.zeros(len(bench.samples), dtype=np.float32)
    each = vmap(grad(lambda *given: sample_loss(bench, *given)), in_dims=(None, 0, 0))
    for places, batch in bench.batches():
        with sdpa_kernel(SDPBackend.MATH):
            gradients = each(held, batch.tokens, batch.targets)
        parts = {factor: gradients[names[factor]].flatten(1) for factor in weights}
        means = bench.references.means
        products = torch.stack([part @ means[factor].T for factor, part in parts.items()])
        squares = torch.stack([part.square().sum(dim=1) for part in parts.values()])
        dots[places] = products.sum(dim=0).cpu().numpy()
        norms[places] = squares.sum(dim=0).sqrt().cpu().numpy()
    return Outcome(dots=dots, norms=norms, kept=dots.nbytes + norms.nbytes)


ROWS: Mapping[str, Row] = {
    "plain": train_plain,
    "measure": measure_by_hooks,
    "last half": measure_last_half,
    "probe": measure_by_probe,
    "forward": measure_forward_only,
    "train": train_round,
    "train, clipped": train_clipped,
    "piggyback": piggyback,
    "loop": one_by_one,
    "vmap": vmap_gradients,
}
"""Name → row; the others are compared with the first."""


def sample_loss(
    bench: Bench, weights: Mapping[str, Tensor], tokens: Tensor, targets: Tensor
) -> Tensor:
    """Return the mean token loss of one padded sample under given weights, for torch transforms."""
    given = {"input_ids": tokens[None], "use_cache": False}  # no mask: padding is on the right
    logits = functional_call(bench.loaded.model, dict(weights), (), given).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits.float(), tokens[1:], reduction="none")
    counted = targets[1:].to(losses.dtype)
    return (losses * counted).sum() / counted.sum()


def factors(bench: Bench) -> dict[str, torch.nn.Parameter]:
    """Return factor, as named in the references → its weight in the model."""
    return {
        f"{name}.{letter}": parts[NAME].weight
        for name, layer in bench.loaded.layers()
        for letter, parts in (("A", layer.lora_A), ("B", layer.lora_B))
    }


def parameter_names(bench: Bench) -> dict[str, str]:
    """Return factor → name of its weight in the model."""
    known = {id(weight): name for name, weight in bench.loaded.model.named_parameters()}
    return {factor: known[id(weight)] for factor, weight in factors(bench).items()}


def reference_rows(bench: Bench, order: Mapping[str, object]) -> Float[Tensor, "k parameters"]:
    """Return the references as flat rows, factors in the given order."""
    return torch.cat([bench.references.means[factor] for factor in order], dim=1)


def required_gradient(gradient: Tensor | None) -> Tensor:
    """Return the gradient that a backward pass must have left.

    Raises:
        RuntimeError: there is none.
    """
    if gradient is None:
        message = "a LoRA factor got no gradient; the model does not run all adapted layers"
        raise RuntimeError(message)
    return gradient
