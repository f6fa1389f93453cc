"""Laws of objectives: the mean of sample losses, and the pull of FedProx."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.strategies.objectives.proximal import proximal
from fedwinnow.strategies.objectives.sft import sft

LOSSES = torch.tensor([1.0, 2.0, 6.0])


def test_sft_is_the_mean_over_samples():
    """Every sample counts the same."""
    assert float(sft()(LOSSES, {}, {})) == 3.0


@given(mu=st.floats(0.0, 100.0), shift=st.floats(-2.0, 2.0))
def test_proximal_adds_half_mu_times_the_squared_distance(mu, shift):
    """L = mean + μ/2 ‖θ − θ_0‖² over all factors."""
    start = {"a": torch.ones(2, 3, dtype=torch.float64), "b": torch.zeros(4, dtype=torch.float64)}
    now = {name: value + shift for name, value in start.items()}
    value = proximal(mu=mu)(LOSSES.double(), now, start)
    assert float(value) == pytest.approx(3.0 + 0.5 * mu * 10 * shift**2)


def test_proximal_gradient_is_mu_times_the_distance():
    """∂L/∂θ = μ (θ − θ_0), and θ_0 gets none."""
    start = {"a": torch.ones(3)}
    now = {"a": torch.tensor([1.0, 2.0, 0.0], requires_grad=True)}
    proximal(mu=4.0)(LOSSES, now, start).backward()
    assert now["a"].grad.tolist() == [0.0, 4.0, -4.0]


def test_proximal_with_mu_zero_is_sft():
    """Without a pull nothing is added, bit for bit."""
    now, start = {"a": torch.ones(3)}, {"a": torch.zeros(3)}
    assert torch.equal(proximal(mu=0.0)(LOSSES, now, start), sft()(LOSSES, now, start))


@pytest.mark.parametrize("mu", [-1.0, float("nan"), float("inf")])
def test_proximal_refuses_mu_out_of_range(mu):
    """μ must be a number of at least 0."""
    with pytest.raises(ValueError, match="at least 0"):
        proximal(mu=mu)
