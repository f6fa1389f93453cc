"""Laws of the anchors' gradient and of alignments: finite differences, no trace in the model."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedwinnow.client.measuring.evaluation import evaluate
from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.client.training.anchor_gradient import anchor_gradient
from fedwinnow.curation.datatypes import Adapter, Sample
from fedwinnow.curation.errors import DataError, IncompatibleAdapterError
from fedwinnow.curation.model.lora_model import get_adapter, set_adapter
from fedwinnow.server.aggregation.update_alignment import update_alignments

ANCHORS = tuple(
    Sample(id=str(i), prompt=f"question {i}", response="answer " * (1 + i % 3) + str(i))
    for i in range(5)
)


def drawn(like: Adapter, seed: int, size: float) -> Adapter:
    """The adapter with seeded noise on both factors."""
    draw = torch.Generator().manual_seed(seed)

    def moved(factors):
        return {k: v + size * torch.randn(v.shape, generator=draw) for k, v in factors.items()}

    return replace(like, a=moved(like.a), b=moved(like.b))


def work(loaded, anchors=ANCHORS, batch_tokens=64):
    options = PassOptions(batch_tokens=batch_tokens, max_length=96)
    pool = SimpleNamespace(split=SimpleNamespace(reference=anchors))
    return SimpleNamespace(loaded=loaded, pass_options=options, data=pool)


def test_alignment_is_the_first_order_drop_of_the_anchors_loss(tiny_model):
    """−⟨∇L, θ_i − θ⟩ is L(θ) − L(θ_i) for a small move, within 2 %, both ways alike."""
    here = drawn(get_adapter(tiny_model), 1, 0.3)
    set_adapter(tiny_model, here)
    gradient = anchor_gradient(work(tiny_model))
    ahead = {
        "down": replace(
            here,
            a={k: v - 1e-3 * gradient.a[k] for k, v in here.a.items()},
            b={k: v - 1e-3 * gradient.b[k] for k, v in here.b.items()},
        ),
        "up": replace(
            here,
            a={k: v + 1e-3 * gradient.a[k] for k, v in here.a.items()},
            b={k: v + 1e-3 * gradient.b[k] for k, v in here.b.items()},
        ),
        "nowhere": here,
    }

    def loss(adapter: Adapter) -> float:
        set_adapter(tiny_model, adapter)
        return float(np.mean(evaluate(tiny_model, ANCHORS, work(tiny_model).pass_options)))

    found = update_alignments(ahead, {"witness": gradient}, here)
    for site, adapter in ahead.items():
        assert found[site] == pytest.approx(loss(here) - loss(adapter), rel=0.02, abs=2e-6)
    assert found["down"] > 0 > found["up"]


def test_alignment_needs_two_of_three_witnesses_to_be_bent(tiny_model):
    """The median over three gradients is the honest value whatever one of them says."""
    here = drawn(get_adapter(tiny_model), 1, 0.3)
    set_adapter(tiny_model, here)
    honest = anchor_gradient(work(tiny_model))
    liar = replace(honest, a={k: 1e6 * torch.ones_like(v) for k, v in honest.a.items()})
    sites = {"a": drawn(here, 2, 0.01), "b": drawn(here, 3, 0.01)}
    plain = update_alignments(sites, {"x": honest}, here)
    assert update_alignments(sites, {"x": honest, "y": honest, "z": liar}, here) == plain
    assert update_alignments(sites, {}, here) == {}


def test_anchor_gradient_does_not_depend_on_batches_and_leaves_no_trace(tiny_model):
    """One sample a batch or all at once: the same; no gradient and no mode stays behind."""
    set_adapter(tiny_model, drawn(get_adapter(tiny_model), 1, 0.3))
    tiny_model.model.train()
    one, other = (anchor_gradient(work(tiny_model, batch_tokens=n)) for n in (8, 4096))
    for name in one.modules:
        for mine, theirs in ((one.a[name], other.a[name]), (one.b[name], other.b[name])):
            assert float((mine - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())
    assert tiny_model.model.training
    assert all(p.grad is None for p in tiny_model.model.parameters())


def test_anchor_gradient_without_a_response_is_a_named_error(tiny_model):
    """Anchors without a response token cannot lead anywhere."""
    with pytest.raises(DataError, match="response token"):
        anchor_gradient(work(tiny_model, anchors=()))


def test_alignment_refuses_another_rank_by_site(tiny_model):
    """Factors of another rank cannot be subtracted; the site is named."""
    here = get_adapter(tiny_model)
    low = replace(
        here, a={k: v[:1] for k, v in here.a.items()}, b={k: v[:, :1] for k, v in here.b.items()}
    )
    with pytest.raises(IncompatibleAdapterError, match="'low'"):
        update_alignments({"low": low}, {"x": here}, here)
