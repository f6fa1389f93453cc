"""Laws of what is done with per-sample gradients: Adam's step, sums over batches, shares."""

import pytest
import torch

from fedwinnow.curation.errors import RunError
from fedwinnow.curation.gradients.contraction import (
    EPSILON,
    Contraction,
    Moments,
    WeightedSums,
    adam_direction,
)

COLUMNS = ("dot", "norm", "influence", "adam_dot", "adam_norm", "adam_adam_dot")


def contracted(gradients, factor=1.0, shares=None):
    """Columns of two factors' gradients, each times its sample's factor."""
    draw = torch.Generator().manual_seed(1)
    names = ("f.A", "f.B")
    rows = {n: torch.randn(2, 12, generator=draw, dtype=torch.float64) for n in names}
    first = {n: torch.randn(12, generator=draw, dtype=torch.float64) for n in names}
    contraction = Contraction(
        references=rows,
        moments=Moments(first=first, second={n: v.square() for n, v in first.items()}, count=3),
        adam_references=rows,
        directions=rows,
        shares=shares,
    )
    for name, part in zip(names, gradients, strict=True):
        contraction(name, part * factor)
    return contraction.columns(COLUMNS)


def test_shares_are_divided_out_of_every_column():
    """Gradients times c, told that the shares are c, give the gradients' columns; c < 0 too."""
    draw = torch.Generator().manual_seed(0)
    gradients = torch.randn(2, 4, 3, 4, generator=draw, dtype=torch.float64)
    shares = torch.tensor([0.5, -2.0, 3.0, 1e-3], dtype=torch.float64)
    expected, found = contracted(gradients), contracted(gradients, shares[:, None, None], shares)
    assert expected.keys() == found.keys() == set(COLUMNS)
    for name, values in expected.items():
        assert torch.allclose(found[name], values, rtol=1e-12, atol=0), name
    flat = torch.cat([part.flatten(1) for part in gradients], dim=1)
    assert torch.allclose(expected["norm"], flat.square().sum(dim=1).sqrt())


def test_a_column_that_was_not_gathered_is_refused():
    """Neither a zero nor a NaN stands for it; a column that is no gradient's is left to others."""
    contraction = Contraction(references={"f": torch.ones(1, 2)})
    contraction("f", torch.ones(3, 1, 2))
    assert contraction.columns(("dot", "loss")).keys() == {"dot"}
    with pytest.raises(RunError, match="adam_dot: no gradient was contracted"):
        contraction.columns(("dot", "adam_dot"))
    contraction.reset()
    with pytest.raises(RunError, match="dot, norm: no gradient"):
        contraction.columns(("dot", "norm"))


def test_adam_direction_is_the_step_that_torch_takes():
    """Γ(g) is torch.optim.Adam's step at learning rate 1 after the same gradients."""
    draw = torch.Generator().manual_seed(0)
    gradients = torch.randn(6, 40, generator=draw, dtype=torch.float64) * 1e-3
    for count in (0, 1, 5):
        weight = torch.nn.Parameter(torch.zeros(40, dtype=torch.float64))
        optimizer = torch.optim.Adam([weight], lr=1.0, eps=EPSILON)
        for gradient in gradients[: count + 1]:
            before = weight.detach().clone()
            weight.grad = gradient.clone()
            optimizer.step()
        sums = WeightedSums(
            weights=0.1 * 0.9 ** torch.arange(count - 1, -1, -1, dtype=torch.float64)[None],
            square_weights=0.001 * 0.999 ** torch.arange(count - 1, -1, -1, dtype=torch.float64),
        )
        sums("w", gradients[:count, None, :])
        found = adam_direction(gradients[count][None], sums.sums["w"][0], sums.squares["w"], count)
        assert torch.allclose(found[0], before - weight.detach(), rtol=1e-9, atol=0)


def test_weighted_sums_of_batches_are_those_of_all():
    """Adding batch by batch is one weighted sum over everything."""
    draw = torch.Generator().manual_seed(0)
    gradients = torch.randn(7, 3, 4, generator=draw, dtype=torch.float64)
    weights = torch.randn(2, 7, generator=draw, dtype=torch.float64)
    parts = WeightedSums(weights=weights[:, :4], square_weights=weights[0, :4])
    parts("f", gradients[:4])
    parts.weights, parts.square_weights = weights[:, 4:], weights[0, 4:]
    parts("f", gradients[4:])
    flat = gradients.flatten(1)
    assert torch.allclose(parts.sums["f"], weights @ flat)
    assert torch.allclose(parts.squares["f"], weights[0] @ flat**2)
