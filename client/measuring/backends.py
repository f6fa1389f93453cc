"""Choose and run a backend that measures a batch: hooks, a probe, or forward passes alone.

=========  ===================================================  ==================================
backend    how                                                  gradient columns
=========  ===================================================  ==================================
hooks      one backward pass; hooks contract each layer's       all, exact
           per-sample gradients and discard them
probe      one backward pass into zero matrices that are part   all, exact
           of the forward pass
           (``curation/gradients/probes.py``); needs no hook
forward    two forward passes a reference, at θ ± hG            dot and influence, to rounding and
           (``curation/gradients/finite_differences.py``)       truncation (docs/measuring.md)
=========  ===================================================  ==================================

``auto`` takes hooks, and the probe where hooks would see nothing. It never takes ``forward``, which
is approximate.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fedwinnow.client.measuring.references import References
from fedwinnow.curation.config.scoring import Backend
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.gradients.finite_differences import FiniteDifferences
from fedwinnow.curation.gradients.hooks import factors_of, why_no_gradients
from fedwinnow.curation.gradients.per_sample import Way, choose_source, per_sample_gradients
from fedwinnow.curation.model.chunked_cross_entropy import Look
from fedwinnow.curation.model.hook_support import is_compiled, why_no_hooks
from fedwinnow.curation.model.lora_model import LoadedModel
from fedwinnow.curation.model.modes import evaluation_mode, frozen_weights
from fedwinnow.curation.model.token_losses import Batch, token_losses
from fedwinnow.curation.signal_columns import BACKENDS, GRADIENTS, REPRESENTATIONS

logger = logging.getLogger(__name__)

Chosen: TypeAlias = Literal["hooks", "probe", "forward"]
Run: TypeAlias = Callable[[Batch, Look | None], tuple[Tensor, Mapping[str, Tensor]]]
"""Token losses (batch, places) of a batch, without a graph, and its gradient columns by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendChoice:
    """Backend, and why it was chosen."""

    name: Chosen
    reason: str


def choose_backend(backend: Backend, loaded: LoadedModel) -> BackendChoice:
    """Choose the backend for a model; ``auto`` depends on whether hooks see its layers."""
    if backend != "auto":
        return BackendChoice(name=backend, reason=f"measuring.backend = {backend!r}")
    if why := why_no_hooks(loaded.model):
        return BackendChoice(name="probe", reason=f"{why}, and the probe needs none")
    return BackendChoice(
        name="hooks", reason="exact, in one backward pass, and the model lets hooks see"
    )


def reference_backend(backend: Backend, loaded: LoadedModel) -> Way:
    """Choose how the reference anchors' own gradients are taken: always by a backward pass.

    The anchors are few and public; a base that cannot run backward cannot be trained either.
    """
    name = choose_backend(backend, loaded).name
    return name if name in {"hooks", "probe"} else choose_source(loaded)


def check_columns(columns: frozenset[str], choice: BackendChoice, loaded: LoadedModel) -> None:
    """Refuse columns that a backend cannot give.

    Raises:
        ModelError: naming the columns, the backend, and what to choose.
    """
    lacking = sorted(columns & GRADIENTS - BACKENDS[choice.name])
    if lacking:
        able = [name for name, given in BACKENDS.items() if set(lacking) <= given]
        message = (
            f"measuring.backend: {choice.name!r} ({choice.reason}) cannot give the signal columns "
            f"{', '.join(lacking)}; choose {' or '.join(map(repr, able))}, or scorers that read "
            "other columns"
        )
        raise ModelError(message)
    states = sorted(columns & REPRESENTATIONS)
    if states and is_compiled(loaded.model):
        message = (
            f"signal columns {', '.join(states)}: a compiled model ignores the hook that reads the "
            "last hidden states; measure before torch.compile, or choose scorers without them"
        )
        raise ModelError(message)


@contextmanager
def batch_runner(
    choice: BackendChoice,
    loaded: LoadedModel,
    references: References | None,
    columns: frozenset[str],
) -> Iterator[Run]:
    """Yield a function that runs one batch and returns its losses and gradient columns.

    Args:
        choice: ``hooks``, ``probe`` or ``forward``; not read where no column is a gradient's.
        loaded: Model with the adapter of the checkpoint.
        references: Reference gradients at that adapter; None only without gradient columns.
        columns: The wanted columns.

    Raises:
        ModelError: an adapter that cannot be measured, or not by this backend.
    """
    if references is None or not columns & GRADIENTS:
        with evaluation_mode(loaded.model), torch.no_grad():
            yield lambda batch, look: (token_losses(loaded.model, batch, look=look), {})
        return
    logger.info("measuring with %s: %s", choice.name, choice.reason)
    if choice.name == "forward":
        with frozen_weights(loaded.model), torch.no_grad():
            yield _forward(loaded, references, columns)
        return
    way: Way = "probe" if choice.name == "probe" else "hooks"
    contraction = references.contraction(columns)
    with per_sample_gradients(
        way, loaded, loaded.layers_with(references.means), contraction
    ) as source:

        def run(batch: Batch, look: Look | None) -> tuple[Tensor, Mapping[str, Tensor]]:
            try:
                source.begin(len(batch.tokens))
                losses = token_losses(loaded.model, batch, look=look)
                source.backward(_means(losses, batch))
                return losses.detach(), contraction.columns(columns)
            finally:  # a failed batch, as when memory runs out, leaves nothing behind
                contraction.reset()
                source.drop()

        yield run


def _forward(loaded: LoadedModel, references: References, columns: frozenset[str]) -> Run:
    """Return a runner of finite differences along references (dot) and DataInf's u_k (influence).

    Raises:
        ModelError: an adapter that cannot be measured, or one sharded over processes.
    """
    layers = loaded.layers_with(references.means)
    problem = why_no_gradients(layers)
    weights = (
        {
            f"{name}.{letter}": factor.weight
            for name, layer in layers.items()
            for letter, factor in zip("AB", factors_of(layer), strict=True)
        }
        if not problem
        else {}
    )
    if any(hasattr(weight, "to_local") for weight in weights.values()):
        problem = "a sharded adapter cannot be moved in place; set measuring.backend = 'probe'"
    if problem:
        message = f"finite differences: {problem}"
        raise ModelError(message)
    kind = loaded.model.get_input_embeddings().weight.dtype
    along = {
        name: FiniteDifferences.along(weights, directions, references.means, kind)
        for name, directions in (("dot", references.means), ("influence", references.directions))
        if name in columns
    }

    def run(batch: Batch, look: Look | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        def each() -> Tensor:
            return _means(token_losses(loaded.model, batch).double(), batch)

        found = {name: differences(each) for name, differences in along.items()}
        return token_losses(loaded.model, batch, look=look), found

    return run


def _means(losses: Tensor, batch: Batch) -> Tensor:
    """Return the mean token loss of every sample, over body and end of turn."""
    return losses.sum(dim=1) / batch.targets[:, batch.first :].sum(dim=1)
