"""Collect signals during training's own forward and backward passes, for the benchmark row.

A step computes the losses ℓ_i of its batch and one backward pass of L(ℓ_1, …, ℓ_b). Hooks on the
adapter's factors (``curation/gradients/hooks.py``), or probes where a model ignores hooks
(``curation/gradients/probes.py``), catch ∂L/∂ℓ_i · ∂ℓ_i/∂θ of every sample in that pass; divided
by ∂L/∂ℓ_i, which autograd hands to a hook on the losses, it is the gradient that measuring takes,
whatever objective, sample weights, accumulation or loss scale made L.

No run measures this way. A row holds the signals at the weights of ITS step, θ_0 for the first
step of a round and others later, while a run measures everything, public rows included, at one
checkpoint (``docs/performance.md``). The references are those of θ_0 throughout.

Reference:
    J. Wang et al., Data Shapley in One Training Run, ICLR 2025, section 4,
    https://arxiv.org/abs/2406.11011
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from fedwinnow.client.measuring.references import References
from fedwinnow.client.measuring.table_builder import SignalTableBuilder
from fedwinnow.client.training.sample_stream import TrainingBatch
from fedwinnow.client.training.watcher import Watcher
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.gradients.contraction import Contraction
from fedwinnow.curation.gradients.hooks import Consume, SeenFactors, sample_gradients
from fedwinnow.curation.gradients.probes import Probe, with_probes
from fedwinnow.curation.model.hidden_states import last_hidden, mean_states
from fedwinnow.curation.model.hook_support import why_no_hooks
from fedwinnow.curation.model.lora_model import LoadedModel
from fedwinnow.curation.model.token_losses import entropies, token_losses
from fedwinnow.curation.signal_columns import (
    ENTROPY,
    GRADIENTS,
    KNOWN,
    OTHER_PROMPTS,
    REPRESENTATIONS,
)

GIVEN = KNOWN - OTHER_PROMPTS
"""Columns that a training step's own forward and backward pass can give."""


@dataclass(slots=True, kw_only=True)
class Collector(Watcher):
    """Watcher that keeps the signals of every sample's latest training step."""

    rows: SignalTableBuilder
    steps: Int64[np.ndarray, " samples"]
    """Last step of this round with the sample in its batch, from 0; −1 if none."""
    contraction: Contraction | None
    references: References | None = None
    states: list[Tensor] | None = None
    """Last hidden states of the current pass; None where no column needs them."""
    source: SeenFactors | Probe | None = None
    """Source of per-sample gradients; None where no column needs them."""
    _losses: Tensor | None = None
    _entropies: list[Tensor] = field(default_factory=list)

    def losses(self, loaded: LoadedModel, drawn: TrainingBatch) -> Tensor:
        """Return the losses as :meth:`Watcher.losses`; keep token losses and entropies."""
        batch, look = drawn.batch.to(loaded.device), None
        if ENTROPY & set(self.rows.columns):

            def look(logits: Tensor) -> None:
                self._entropies.append(entropies(logits))

        if isinstance(self.source, Probe):
            self.source.begin(len(drawn.places))
        table = token_losses(loaded.model, batch, look=look)
        self._losses = table.detach()
        each = table.sum(dim=1) / batch.targets[:, batch.first :].sum(dim=1)
        if self.contraction is not None:
            each.register_hook(partial(setattr, self.contraction, "shares"))
        return each

    def passed(self, drawn: TrainingBatch, step: int) -> None:
        """Store the rows of the samples in the step's batch.

        Where ∂L/∂ℓ_i is 0, as for a sample of weight 0, the pass holds nothing of the sample's
        gradient, and it counts as not visited.
        """
        rows = np.array(drawn.places, dtype=np.int64)
        self.steps[rows] = step
        if self._losses is not None:
            self.rows.put_losses(rows, self._losses, drawn.batch, drawn.encodings)
        if self._entropies:
            values = torch.cat(self._entropies)
            self._entropies.clear()
            self.rows.put_entropies(rows, values, drawn.batch, drawn.encodings)
        if self.states and self.references is not None:
            states = mean_states(self.states.pop(), drawn.batch, drawn.encodings)
            self.rows.put(rows, self.references.similarity(states))
        if self.source is not None and self.contraction is not None:
            if isinstance(self.source, Probe):
                self.source.end(self.contraction)
            else:
                self.source.check()
            self.rows.put(rows, self.contraction.columns(self.rows.columns))
            if self.contraction.shares is not None:
                unseen = rows[(self.contraction.shares == 0).cpu().numpy()]
                self.steps[unseen] = -1
                for column in self.rows.columns.values():
                    column[unseen] = np.nan
            self.contraction.reset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Visits:
    """Signals collected by the steps of a round, by sample."""

    columns: Mapping[str, np.ndarray]
    """Name → float32, rows in the samples' order; NaN where no step used the sample."""
    steps: Int64[np.ndarray, " samples"]
    """Step of the round that a row comes from, from 0; −1 where none."""


@dataclass(slots=True, kw_only=True)
class Piggyback:
    """Watch over a round of training: ``train(…, watch=piggyback)``, then :meth:`visits`."""

    samples: Sequence[Sample]
    """Samples that are trained on, in their order."""
    columns: frozenset[str]
    """Wanted columns; those of :data:`GIVEN` are collected."""
    references: References | None
    """References at the adapter of the first step; needed for gradient columns."""
    collector: Collector | None = None

    @contextmanager
    def __call__(self, loaded: LoadedModel) -> Iterator[Watcher]:
        """Watch the steps inside the block.

        Raises:
            ModelError: dropout is on, references lack, or the adapter cannot be measured.
        """
        wanted, references = self.columns & GIVEN, self.references
        _refuse_dropout(loaded.model)
        needed = wanted & (GRADIENTS | REPRESENTATIONS)
        if needed and references is None:
            message = f"signal columns {', '.join(sorted(needed))} need reference anchors"
            raise ModelError(message)
        with ExitStack() as stack:
            contraction = states = None
            if wanted & GRADIENTS and references is not None:
                contraction = references.contraction(wanted)
            if wanted & REPRESENTATIONS:
                states = stack.enter_context(last_hidden(loaded))
            number = 0 if references is None else len(references.names)
            self.collector = Collector(
                rows=SignalTableBuilder.empty(len(self.samples), wanted, number),
                steps=np.full(len(self.samples), -1, dtype=np.int64),
                contraction=contraction,
                references=references,
                states=states,
            )
            if contraction is not None and references is not None:
                self.collector.source = stack.enter_context(
                    _watched(loaded, loaded.layers_with(references.means), contraction)
                )
            yield self.collector

    def visits(self) -> Visits:
        """Return the signals that the round's steps collected.

        Raises:
            ModelError: no round was watched.
        """
        held = self.collector
        if held is None:
            message = "piggyback: no training round was watched; give it to train(…, watch=…)"
            raise ModelError(message)
        return Visits(
            columns={name: values.copy() for name, values in held.rows.columns.items()},
            steps=held.steps.copy(),
        )


def _watched(
    loaded: LoadedModel, layers: Mapping[str, Any], consume: Consume
) -> AbstractContextManager[SeenFactors | Probe]:
    """Attach hooks, or probes where the model does not let hooks see its layers."""
    if why_no_hooks(loaded.model):
        return with_probes(loaded.model, layers, training=True)
    return sample_gradients(loaded.model, layers, consume, training=True)


def _refuse_dropout(model: nn.Module) -> None:
    """Refuse dropout, with which a training step runs another model than measuring does.

    Raises:
        ModelError: a module has dropout; names it.
    """
    for name, part in model.named_modules():
        if isinstance(part, nn.Dropout) and part.p > 0:
            message = (
                f"piggyback: {name} drops {part.p:.0%} of its inputs in training, so a step's "
                "signals are not those of the model; set adapter.dropout = 0"
            )
            raise ModelError(message)
