"""Losses behind a large vocabulary, piece by piece: the plain ones, in value and in gradient."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.curation.model import token_losses as losses
from fedwinnow.curation.model.chunked_cross_entropy import chunked_losses
from fedwinnow.curation.model.token_losses import collate, entropies, sample_losses, token_losses
from fedwinnow.curation.tokens.tokenization import Encoding


def plain(hidden, head, wanted):
    """The definition, with all logits."""
    return torch.nn.functional.cross_entropy(head(hidden), wanted, reduction="none")


def frozen_head(width, vocabulary, *, bias):
    """A linear head of float64 without gradients."""
    return torch.nn.Linear(width, vocabulary, bias=bias).double().requires_grad_(False)


@given(
    targets=st.integers(1, 9), rows=st.integers(1, 10), bias=st.booleans(), seed=st.integers(0, 999)
)
def test_pieces_equal_the_whole_in_value_and_gradient(targets, rows, bias, seed):
    """Any size of pieces, any weights of the targets: 1e-12 in float64."""
    torch.manual_seed(seed)
    head = frozen_head(5, 11, bias=bias)
    hidden = torch.randn(targets, 5, dtype=torch.float64, requires_grad=True)
    wanted, weights = torch.randint(0, 11, (targets,)), torch.randn(targets, dtype=torch.float64)
    found, expected = chunked_losses(hidden, head, wanted, rows=rows), plain(hidden, head, wanted)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (one,) = torch.autograd.grad((found * weights).sum(), hidden)
    (other,) = torch.autograd.grad((expected * weights).sum(), hidden)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_pieces_are_never_larger_than_asked_and_all_are_shown():
    """What looks on sees every row once, in order, and no table of more than ``rows`` rows."""
    torch.manual_seed(0)
    head, seen = frozen_head(3, 7, bias=False), []
    hidden, wanted = torch.randn(10, 3, dtype=torch.float64), torch.randint(0, 7, (10,))
    chunked_losses(hidden, head, wanted, rows=4, look=seen.append)
    assert [len(piece) for piece in seen] == [4, 4, 2]
    assert torch.equal(torch.cat(seen), head(hidden))
    assert not any(piece.requires_grad for piece in seen)


def batch_of(*sizes):
    """Random tokens, ragged."""
    draw = np.random.default_rng(0)
    return collate(
        [
            Encoding(
                tokens=draw.integers(3, 60, size).astype(np.int32),
                response_start=size // 3,
                body_end=size - 1,
            )
            for size in sizes
        ]
    )


def test_a_model_in_pieces_equals_the_model_at_once(tiny_model):
    """Losses, entropies and the adapter's gradients: ≤ 1e-5 of the largest."""
    net, batch = tiny_model.model, batch_of(9, 21, 14)
    parameters = [p for p in net.parameters() if p.requires_grad]
    found, shown = [], []
    for whole in (losses.WHOLE, 400):
        seen = []
        table = token_losses(
            net, batch, look=lambda piece, seen=seen: seen.append(piece), whole=whole
        )
        grads = torch.autograd.grad(table.sum(), parameters)
        found.append((table.detach(), torch.cat([g.flatten() for g in grads])))
        shown.append((len(seen), torch.cat([entropies(piece) for piece in seen])))
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) <= 1e-5 * float(one.abs().max())
    assert shown[0][0] == 1
    assert shown[1][0] > 10
    torch.testing.assert_close(shown[0][1], shown[1][1], rtol=1e-5, atol=1e-6)


def test_small_batches_are_run_at_once(tiny_model, monkeypatch):
    """Below the limit nothing changes: no piece is made, so recorded numbers stay."""
    monkeypatch.setattr(losses, "chunked_losses", None)
    assert torch.isfinite(sample_losses(tiny_model.model, batch_of(9, 21))).all()


def test_a_model_that_scales_its_logits_is_run_at_once_and_said_so(tiny_model, caplog, monkeypatch):
    """What stands behind the head is not skipped: the same losses, and a warning."""
    net, batch = tiny_model.model, batch_of(9, 21)
    base = net.get_base_model()
    call = base.forward

    def capped(*args, **options):
        output = call(*args, **options)
        output.logits = 5.0 * torch.tanh(output.logits / 5.0)
        return output

    monkeypatch.setattr(base, "forward", capped)
    expected = token_losses(net, batch)
    with caplog.at_level(logging.WARNING, "fedwinnow.curation.model.token_losses"):
        found = token_losses(net, batch, whole=400)
    assert torch.equal(found, expected)
    assert "changes the logits behind its head" in caplog.text


@pytest.mark.parametrize("whole", [400, 10**9])
def test_a_head_that_learns_keeps_its_gradient(tiny_model, whole):
    """Where the head itself is trained, its gradient is the plain one, whatever the limit."""
    net, batch = tiny_model.model, batch_of(9, 12)
    head = net.get_base_model().lm_head
    head.weight.requires_grad_(True)
    (grad,) = torch.autograd.grad(token_losses(net, batch, whole=whole).sum(), head.weight)
    assert float(grad.abs().sum()) > 0


def test_pieces_in_bfloat16_autocast_equal_the_whole_to_its_rounding(tiny_model):
    """Under autocast both ways multiply in bfloat16 and sum losses in float32: ≤ 1 %."""
    net, batch = tiny_model.model, batch_of(9, 21)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole, pieces = (
            token_losses(net, batch, whole=n).detach().sum() for n in (losses.WHOLE, 400)
        )
    assert pieces.dtype == torch.float32
    assert float(pieces) == pytest.approx(float(whole), rel=1e-2)
