"""Laws of objectives, tried on a batch of four losses and one matrix that has moved."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedwinnow.curation.errors import CurationError
from fedwinnow.strategies.conformance.law import Law, Make
from fedwinnow.strategies.conformance.scorer_laws import made_up
from fedwinnow.strategies.interfaces.objective import WeighingObjective

LOSSES = (0.5, 2.0, 1.25, 3.0)


def moved() -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Return the parameters now and at the start of the round."""
    start = torch.linspace(-1, 1, 12).reshape(3, 4)
    return {"lora_A": (start + 0.1).requires_grad_()}, {"lora_A": start}


def _loss(make: Make, losses: Tensor) -> Tensor:
    found: Tensor = make()(losses, *moved())
    return found


def _scalar(make: Make) -> str:
    value = _loss(make, torch.tensor(LOSSES))
    if value.shape != ():
        return f"expected one number, got shape {tuple(value.shape)}"
    return "" if bool(torch.isfinite(value)) else f"finite losses give {float(value.detach())}"


def _gradient(make: Make) -> str:
    losses = torch.tensor(LOSSES, requires_grad=True)
    value = _loss(make, losses)
    if not value.requires_grad:
        return "no gradient reaches the losses"
    value.backward()
    gradient = losses.grad
    if gradient is None or not bool(torch.isfinite(gradient).all()):
        return "the gradient of the losses is missing or not finite"
    return "" if bool((gradient != 0).any()) else "the gradient of every loss is 0"


def _deterministic(make: Make) -> str:
    values = {float(_loss(make, torch.tensor(LOSSES)).detach()) for _ in range(2)}
    return "" if len(values) == 1 else f"the same losses give {sorted(values)}"


def _loud(make: Make) -> str:
    losses = torch.tensor([0.5, float("nan"), 1.0, 2.0])
    try:
        value = _loss(make, losses)
    except CurationError:
        return ""
    return "" if bool(torch.isnan(value)) else f"a NaN loss travels as {float(value.detach())}"


def _untouched(make: Make) -> str:
    losses, (now, start) = torch.tensor(LOSSES), moved()
    before = losses.clone(), now["lora_A"].detach().clone(), start["lora_A"].clone()
    make()(losses, now, start)
    after = losses, now["lora_A"].detach(), start["lora_A"]
    same = all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    return "" if same else "it changes a tensor in place"


def _one(make: Make) -> str:
    value = _loss(make, torch.tensor([1.5]))
    return "" if bool(torch.isfinite(value)) else f"a batch of one gives {float(value.detach())}"


def _weights(make: Make) -> str:
    objective = make()
    if not isinstance(objective, WeighingObjective):
        return ""
    trajectory = made_up(objective.columns)
    scores = np.random.default_rng(3).random(len(trajectory[0].ids))
    scores[4] = np.nan
    weights = np.asarray(objective.weights(scores, trajectory))
    if weights.shape != scores.shape:
        return f"{weights.shape} weights for {scores.shape} samples"
    good = np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0
    return "" if good else "a weight is negative or not finite, or all are 0"


LAWS = (
    Law(says="a batch of losses gives one finite number", check=_scalar),
    Law(says="a batch of one does, too", check=_one),
    Law(says="its gradient reaches the losses", check=_gradient),
    Law(says="the same losses give the same number", check=_deterministic),
    Law(says="a NaN loss is not hidden", check=_loud),
    Law(says="it changes nothing that it is given", check=_untouched),
    Law(says="weights of samples are finite and at least 0, also without a score", check=_weights),
)
