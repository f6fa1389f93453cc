"""Context managers of a model's mode: evaluation mode, frozen weights."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off inside; every module is in its own mode again outside."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Eval mode, and no parameter requires a gradient inside; everything as before outside."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)  # noqa: FBT003 - torch's own form
        with evaluation_mode(model):
            yield
    finally:
        for parameter, grad in wanted:
            parameter.requires_grad_(grad)
