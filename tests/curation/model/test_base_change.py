"""Laws of a changed base: the forward pass is that of changed weights, and sums are exact."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import IncompatibleAdapterError, ProtocolError
from fedwinnow.curation.model.base_change import (
    add_change,
    apply_base_change,
    changed_base_hash,
    effective_adapter,
)
from fedwinnow.curation.model.lora_model import freeze_factors, get_adapter, set_adapter

TOKENS = torch.tensor([[1, 5, 9, 2, 7]])


def drawn(like: Adapter, seed: int, rank: int) -> Adapter:
    """Random factors of a rank for the modules of another adapter."""
    draw = torch.Generator().manual_seed(seed)
    return Adapter(
        base=like.base,
        a={m: torch.randn(rank, a.shape[1], generator=draw) for m, a in like.a.items()},
        b={m: 0.2 * torch.randn(b.shape[0], rank, generator=draw) for m, b in like.b.items()},
        scales=dict.fromkeys(like.a, 0.5 + rank),
    )


def dense(adapter: Adapter, module: str) -> torch.Tensor:
    product = maths.delta(adapter, module)
    return product.left @ product.right


@given(seed=st.integers(0, 1000), first=st.integers(1, 4), second=st.integers(1, 4))
def test_add_change_and_effective_are_sums(seed, first, second):
    """ΔW of the sum is the sum of ΔW, in float32 factors to 1e-6; ranks add at the most."""
    like = Adapter(
        base="b", a={"m": torch.zeros(1, 9)}, b={"m": torch.zeros(7, 1)}, scales={"m": 1.0}
    )
    one, other = drawn(like, seed, first), drawn(like, seed + 1, second)
    summed = add_change(one, other)
    goal = dense(one, "m") + dense(other, "m")
    assert float((dense(summed, "m") - goal).norm() / goal.norm()) < 1e-6
    assert summed.a["m"].shape[0] <= first + second
    labelled = replace(other, base=changed_base_hash("b", one))
    whole = effective_adapter(labelled, one)
    assert whole.base == "b"
    assert float((dense(whole, "m") - goal).norm() / goal.norm()) < 1e-6


def test_effective_refuses_another_rounds_change():
    """An adapter of one change does not go with another; without a change it is itself."""
    like = Adapter(
        base="b", a={"m": torch.zeros(1, 9)}, b={"m": torch.zeros(7, 1)}, scales={"m": 1.0}
    )
    one, other = drawn(like, 1, 2), drawn(like, 2, 2)
    assert effective_adapter(other, None) is other
    with pytest.raises(IncompatibleAdapterError, match="same round"):
        effective_adapter(replace(other, base=changed_base_hash("b", other)), one)


def test_changed_model_is_the_model_with_changed_weights(tiny_model):
    """Logits and gradients inside are those of the stacked adapter; outside all is as before."""
    like = get_adapter(tiny_model)
    change, adapter = drawn(like, 3, 2), drawn(like, 4, 4)
    set_adapter(
        tiny_model,
        effective_adapter(replace(adapter, base=changed_base_hash(like.base, change)), change),
    )
    expected = tiny_model.model(input_ids=TOKENS).logits.detach()
    set_adapter(tiny_model, adapter)
    plain = tiny_model.model(input_ids=TOKENS).logits.detach()
    with apply_base_change(tiny_model, change):
        logits = tiny_model.model(input_ids=TOKENS).logits
        logits.square().sum().backward()
    assert torch.allclose(logits, expected, atol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-2)
    assert torch.equal(tiny_model.model(input_ids=TOKENS).logits, plain)
    _, layer = next(tiny_model.layers())
    assert float(layer.lora_A["default"].weight.grad.abs().sum()) > 0
    tiny_model.model.zero_grad()
    set_adapter(tiny_model, like)


def test_changed_refuses_a_strangers_change(tiny_model):
    """A change of another base leaves the model alone."""
    like = get_adapter(tiny_model)
    with (
        pytest.raises(IncompatibleAdapterError, match=r"this run.s change"),
        apply_base_change(tiny_model, replace(drawn(like, 1, 1), base="other")),
    ):
        pass
    assert not any(layer._forward_hooks for _, layer in tiny_model.layers())


def test_fixed_factor_stays_and_the_other_learns(tiny_model):
    """One step inside leaves "a" (or "b") bit for bit as it was; outside both learn again."""
    start = drawn(get_adapter(tiny_model), 6, 3)
    for factor in ("a", "b", ""):
        set_adapter(tiny_model, start)
        with freeze_factors(tiny_model, factor):
            tiny_model.model(input_ids=TOKENS).logits.square().sum().backward()
            learning = [p for p in tiny_model.model.parameters() if p.requires_grad]
            torch.optim.SGD(learning, lr=1e-3).step()
            tiny_model.model.zero_grad()
        after = get_adapter(tiny_model)
        for name in start.modules:
            assert torch.equal(after.a[name], start.a[name]) == (factor == "a")
            assert torch.equal(after.b[name], start.b[name]) == (factor == "b")
        assert all(p.requires_grad for n, p in tiny_model.model.named_parameters() if "lora" in n)
    with pytest.raises(ProtocolError, match="'c'"), freeze_factors(tiny_model, "c"):
        pass
