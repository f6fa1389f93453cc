"""Derivatives without a backward pass, on losses whose derivatives are known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.curation.gradients.finite_differences import FiniteDifferences, predicted_change

KIND = torch.float64


def of(weights, directions):
    """Differences over given factors."""
    return FiniteDifferences.along(weights, directions, directions, KIND)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 3))
def test_differences_of_a_quadratic_are_its_dot_products(seed, k):
    """A two-sided difference has no error of second order: exact for quadratics, but rounding."""
    draw = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, generator=draw, dtype=KIND) + 2.0 for n in (3, 4))
    weights = {"A": a.clone(), "B": b.clone()}
    directions = {n: torch.randn(k, len(w), generator=draw, dtype=KIND) for n, w in weights.items()}
    forms = torch.randn(5, 7, 7, generator=draw, dtype=KIND)
    point = torch.cat([a, b])

    def losses():
        now = torch.cat([weights["A"], weights["B"]])
        return torch.einsum("p,ipq,q->i", now, forms, now)

    gradients = torch.einsum("ipq,q->ip", forms + forms.transpose(1, 2), point)
    expected = gradients @ torch.cat([directions["A"], directions["B"]], dim=1).T
    found = of(weights, directions)(losses)
    assert torch.allclose(found, expected, rtol=1e-7, atol=1e-7 * float(expected.abs().max()))
    assert torch.equal(weights["A"], a)
    assert torch.equal(weights["B"], b)


def test_differences_are_linear_in_the_direction():
    """Along cG: c times the derivative, found at the same two points."""
    weights = {"A": torch.tensor([1.0, 2.0], dtype=KIND)}
    one = of(weights, {"A": torch.tensor([[1.0, -1.0]], dtype=KIND)})
    many = of(weights, {"A": torch.tensor([[1e6, -1e6]], dtype=KIND)})
    assert many.steps[0] * 1e6 != one.steps[0]  # a slope grows with c²
    first = one(weights["A"].exp)
    assert torch.allclose(many(weights["A"].exp), 1e6 * first, rtol=1e-6)


def test_a_step_moves_the_reference_loss_as_predicted_and_never_far():
    """⟨hd, G⟩ = δ; where that is far, half of the weights' size; where d ⟂ G, that as well."""
    weights = {"A": torch.tensor([3.0, 4.0], dtype=KIND)}
    d = {"A": torch.tensor([[1.0, 0.0], [1e-9, 0.0], [0.0, 2.0]], dtype=KIND)}
    g = {"A": torch.tensor([[2.0, 0.0], [1e-9, 0.0], [5.0, 0.0]], dtype=KIND)}
    steps = FiniteDifferences.along(weights, d, g, KIND).steps
    assert steps == pytest.approx((predicted_change(KIND) / 2, 2.5e9, 1.25))


def test_differences_along_nothing_are_zero():
    """A reference without a gradient has the derivative 0, not 0 / 0."""
    weights = {"A": torch.ones(2, dtype=KIND)}
    directions = {"A": torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=KIND)}
    found = of(weights, directions)(weights["A"].square)
    assert found[:, 0].tolist() == [0.0, 0.0]
    assert found[:, 1].tolist() == pytest.approx([2.0, 0.0], abs=1e-9)


def test_differences_put_the_weights_back_after_an_error():
    """A pass that fails leaves the adapter as it was."""
    weights = {"A": torch.ones(2, dtype=KIND)}

    def broken():
        message = "out of memory"
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="memory"):
        of(weights, {"A": torch.ones(1, 2, dtype=KIND)})(broken)
    assert torch.equal(weights["A"], torch.ones(2, dtype=KIND))


def test_step_grows_with_the_roundoff_of_the_number_format():
    """(3 u)^(1/3) / 10: the same in float64 as in float32, 0.02 nats in bfloat16."""
    changes = [predicted_change(k) for k in (torch.float64, torch.float32, torch.bfloat16)]
    assert changes == pytest.approx([5.63e-4, 5.63e-4, 0.0227], rel=0.01)
