"""Set a model's mode inside a block: evaluation mode, frozen weights."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode inside the block; restore each module's mode after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Freeze all parameters, in evaluation mode, inside the block; restore both after it."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)  # noqa: FBT003 - torch's own form
        with evaluation_mode(model):
            yield
    finally:
        for parameter, grad in wanted:
            parameter.requires_grad_(grad)
