"""Laws of clipped sums: each sample by itself, all its factors together, no more."""

import pytest
import torch
from test_hooks import batch_of, factor_name

from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.gradients.clipped_sum import clipped_gradients
from fedwinnow.curation.model.lora_model import get_adapter, set_adapter
from fedwinnow.curation.model.token_losses import sample_losses


@pytest.fixture
def model(tiny_model):
    """The tiny model in float64, with B ≠ 0."""
    start, draw = get_adapter(tiny_model), torch.Generator().manual_seed(2)
    for factor in start.b.values():
        factor.copy_(torch.randn(factor.shape, generator=draw) * 0.1)
    set_adapter(tiny_model, start)
    tiny_model.model.double()
    return tiny_model


def weights_of(net):
    return {factor_name(n): p for n, p in net.named_parameters() if p.requires_grad}


def gradients(net):
    return {name: p.grad.clone() for name, p in weights_of(net).items()}


def clipped_by_loop(net, batch, bound, draws):
    """Σ clip(∇ℓ_i) / n, one autograd pass a sample."""
    weights = weights_of(net)
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    for loss in sample_losses(net, batch):
        parts = torch.autograd.grad(loss, list(weights.values()), retain_graph=True)
        norm = torch.sqrt(sum(part.square().sum() for part in parts))
        for name, part in zip(weights, parts, strict=True):
            total[name] += part * min(1.0, bound / float(norm)) / draws
    return total


@pytest.mark.parametrize("bound", [1e-3, 0.7, 1e9])
@pytest.mark.parametrize("fresh", [False, True])
def test_clipped_sum_equals_a_loop_over_samples(model, bound, fresh):
    """Oracle: float64 autograd, one sample a pass; also from B = 0, and over two passes a step."""
    net, batches = model.model.train(), (batch_of(model, 3), batch_of(model, 1))
    if fresh:
        for name, weight in weights_of(net).items():
            weight.data.mul_(not name.endswith(".B"))
    expected = [clipped_by_loop(net, batch, bound, 4) for batch in batches]
    net.zero_grad(set_to_none=True)
    with clipped_gradients(net, dict(model.layers()), bound) as clipper:
        for batch in batches:
            (sample_losses(net, batch).sum() / 4).backward()
            norms = clipper.add_clipped(4)
            assert norms.shape == (len(batch.tokens),)
    for name, found in gradients(net).items():
        wanted = expected[0][name] + expected[1][name]
        assert (found - wanted).abs().max() <= 1e-12 * max(1.0, float(wanted.abs().max())), name


def test_one_sample_moves_a_step_by_no_more_than_the_bound(model):
    """Law: any sample, whatever pulls at it, changes the step's gradient by at most C / n."""
    net, layers, bound = model.model.train(), dict(model.layers()), 0.05
    every = batch_of(model, 4)

    def step(factors):
        net.zero_grad(set_to_none=True)
        with clipped_gradients(net, layers, bound) as clipper:
            (sample_losses(net, every) * factors).mean().backward()
            clipper.add_clipped(4)
        return torch.cat([one.flatten() for one in gradients(net).values()])

    without = step(torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64))
    for pull in (1.0, 1e3, 1e9):
        factors = torch.tensor([1.0, 1.0, pull, 1.0], dtype=torch.float64)
        assert float((step(factors) - without).norm()) <= bound / 4 * (1 + 1e-9)


def test_what_is_not_a_sample_is_not_clipped(model):
    """Law: a penalty on the weights keeps its own gradient; frozen factors get none."""
    net, layers = model.model.train(), dict(model.layers())
    frozen = [p for n, p in weights_of(net).items() if n.endswith(".A")]
    for weight in frozen:
        weight.requires_grad_(False)
    trained = weights_of(net)
    with clipped_gradients(net, layers, 1e-6) as clipper:
        penalty = sum(p.square().sum() for p in trained.values())
        (0 * sample_losses(net, batch_of(model)).mean() + penalty).backward()
        clipper.add_clipped(3)
    assert all(weight.grad is None for weight in frozen)
    for weight in trained.values():
        assert torch.equal(weight.grad, 2 * weight.detach())


def test_sample_without_a_gradient_is_left_alone(model):
    """Edge: a sample of loss 0 divides nothing by zero."""
    net = model.model.train()
    with clipped_gradients(net, dict(model.layers()), 1.0) as clipper:
        (sample_losses(net, batch_of(model)) * 0).sum().backward()
        assert not clipper.add_clipped(3).any()
    assert all(bool((g == 0).all()) for g in gradients(net).values())


def test_factor_with_its_own_forward_is_refused(model, monkeypatch):
    """Edge: what hooks cannot split by samples is refused by the name of the setting."""
    layer = next(iter(dict(model.layers()).values()))
    factor = layer.lora_A["default"]
    monkeypatch.setattr(factor, "forward", lambda x: x @ factor.weight.T)
    with (
        pytest.raises(ModelError, match="sample_grad_norm"),
        clipped_gradients(model.model, dict(model.layers()), 1.0),
    ):
        pass
