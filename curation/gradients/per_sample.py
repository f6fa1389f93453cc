"""Compute per-sample gradients of a batch by hooks or by a probe, behind one interface."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from fedwinnow.curation.gradients.hooks import Consume, SeenFactors, sample_gradients
from fedwinnow.curation.gradients.probes import Probe, with_probes
from fedwinnow.curation.model.hook_support import why_no_hooks
from fedwinnow.curation.model.lora_model import LoadedModel

Way = Literal["hooks", "probe"]


class GradientSource(Protocol):
    """Source of per-sample gradients, batch by batch."""

    def begin(self, samples: int) -> None:
        """Prepare for the forward pass of ``samples`` samples."""

    def backward(self, losses: Tensor) -> None:
        """Differentiate the sum of the samples' losses (batch,) and hand the gradients on."""

    def drop(self) -> None:
        """Discard a batch that was begun and will not be finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hooked:
    firing: SeenFactors

    def begin(self, samples: int) -> None:
        """Do nothing with ``samples``: the hooks see whatever runs."""

    def backward(self, losses: Tensor) -> None:
        losses.sum().backward()
        self.firing.check()

    def drop(self) -> None:
        self.firing.forget()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probing:
    probe: Probe
    consume: Consume

    def begin(self, samples: int) -> None:
        self.probe.begin(samples)

    def backward(self, losses: Tensor) -> None:
        losses.sum().backward()
        self.probe.end(self.consume)

    def drop(self) -> None:
        self.probe.drop()


def choose_source(loaded: LoadedModel) -> Way:
    """Return "hooks", or "probe" where the model would not let hooks see its layers."""
    return "probe" if why_no_hooks(loaded.model) else "hooks"


@contextmanager
def per_sample_gradients(
    way: Way, loaded: LoadedModel, layers: Mapping[str, Any], consume: Consume
) -> Iterator[GradientSource]:
    """Yield a source of per-sample gradients, with the model frozen in eval mode inside the block.

    Afterwards the model is as before. The graph begins at the lowest of the given layers: nothing
    below it runs backward.

    Args:
        way: "hooks" or "probe".
        loaded: The model.
        layers: Those of its LoRA layers whose gradients are wanted, by name.
        consume: Called as ``consume("NAME.A" or "NAME.B", gradients)``.

    Raises:
        ModelError: an adapter that cannot be measured, or not in this way.
    """
    if way == "hooks":
        with sample_gradients(loaded.model, layers, consume) as firing:
            yield _Hooked(firing=firing)
    else:
        with with_probes(loaded.model, layers) as probe:
            yield _Probing(probe=probe, consume=consume)
