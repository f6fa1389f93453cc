"""Observe the forward and backward passes of a training round; the default only computes losses."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from torch import Tensor

from fedwinnow.client.training.sample_stream import TrainingBatch
from fedwinnow.curation.model.lora_model import LoadedModel
from fedwinnow.curation.model.token_losses import sample_losses


class Watcher:
    """Observer of training passes: computes the losses; subclasses may record more."""

    def losses(self, loaded: LoadedModel, drawn: TrainingBatch) -> Tensor:
        """Return the mean token loss of each sample of the batch, differentiable, on the device."""
        return sample_losses(loaded.model, drawn.batch.to(loaded.device))

    def passed(self, drawn: TrainingBatch, step: int) -> None:
        """Observe the end of the backward pass of ``drawn`` in a step of the round, from 0."""


Watch = Callable[[LoadedModel], AbstractContextManager[Watcher]]
"""Opens a watcher around the steps of a round, with the first step's adapter in the model."""
