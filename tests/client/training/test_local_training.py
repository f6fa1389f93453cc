"""Laws of local training: exact step counts, repeatability, oracles, named errors."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.client.training.local_training import train
from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.config.scoring import AdapterSection, ModelSection
from fedwinnow.curation.config.training import TrainingSection
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import (
    ConfigError,
    EmptySelectionError,
    NonFiniteError,
    PluginError,
    ProtocolError,
)
from fedwinnow.curation.model.lora_model import get_adapter, set_adapter
from fedwinnow.curation.model.pretrained import encode, load_model
from fedwinnow.curation.model.token_losses import collate, sample_losses
from fedwinnow.strategies.interfaces.ordering import Order
from fedwinnow.strategies.merging.stack import stack
from fedwinnow.strategies.objectives.proximal import proximal
from fedwinnow.strategies.objectives.sft import sft

SAMPLES = tuple(
    Sample(id=str(i), prompt=f"question {i}", response="answer " * (1 + i % 3) + str(i))
    for i in range(6)
)
LENGTH = 96


@pytest.fixture
def dropping(tiny_model_folder):
    """The tiny model with dropout before its adapter."""
    return load_model(
        ModelSection(name=str(tiny_model_folder), max_length=LENGTH),
        AdapterSection(rank=4, alpha=8.0, dropout=0.2, targets=("q_proj", "v_proj")),
        seed=0,
    )


def in_order(count: int = len(SAMPLES)) -> Order:
    """Data order, repeated in every pass."""
    return Order(indices=np.arange(count), keep_order=True)


def run(tiny_model, start, samples=SAMPLES, **changes):
    """Three steps of two samples from ``start``, with changes."""
    mine = {"steps", "learning_rate", "schedule", "objective"}
    keys = (TrainingSection.__dataclass_fields__.keys() - mine) & changes.keys()
    section = {key: changes.pop(key) for key in keys}
    arguments = {
        "adapter": start,
        "section": TrainingSection(**{"batch_size": 2, **section}),
        "steps": 3,
        "step_offset": 0,
        "total_steps": 3,
        "order": in_order(len(samples)),
        "objective": sft(),
        "learning_rate": 1e-2,
        "schedule": "constant",
        "seed": 5,
        "options": PassOptions(batch_tokens=64, max_length=LENGTH),
    }
    return train(tiny_model, samples, **{**arguments, **changes})


def gap(one, other) -> float:
    """Largest difference of any factor's entry."""
    return max(
        float((getattr(one, kind)[m] - getattr(other, kind)[m]).abs().max())
        for kind in ("a", "b")
        for m in one.modules
    )


def distance(one, other) -> float:
    """Euclidean distance of the factors."""
    return math.sqrt(
        sum(
            float((getattr(one, kind)[m] - getattr(other, kind)[m]).square().sum())
            for kind in ("a", "b")
            for m in one.modules
        )
    )


def test_train_takes_exactly_the_steps_and_learns(tiny_model):
    """As many losses as steps, whatever the number of samples; the loss falls on two samples."""
    start = get_adapter(tiny_model)
    seen = []
    trained = run(
        tiny_model,
        start,
        SAMPLES[:2],
        steps=25,
        total_steps=25,
        on_progress=lambda done, steps: seen.append((done, steps)),
    )
    assert len(trained.losses) == 25
    assert seen == [(i + 1, 25) for i in range(25)]
    assert trained.losses[-1] < trained.losses[0] - 0.05
    assert adapter_hash(get_adapter(tiny_model)) == adapter_hash(trained.adapter)


def test_train_is_bit_identical_whatever_came_before(dropping):
    """Same arguments, same adapter, also with dropout and after other training."""
    start = get_adapter(dropping)
    one = run(dropping, start, order=Order(indices=np.arange(6)), steps=5, total_steps=5)
    run(dropping, one.adapter, seed=99, steps=2, batch_size=3, precision="bf16")
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    two = run(dropping, start, order=Order(indices=np.arange(6)), steps=5, total_steps=5)
    assert torch.equal(before, torch.get_rng_state())
    assert adapter_hash(one.adapter) == adapter_hash(two.adapter)
    assert one.losses == two.losses
    other = run(dropping, start, order=Order(indices=np.arange(6)), seed=6, steps=5, total_steps=5)
    assert adapter_hash(one.adapter) != adapter_hash(other.adapter)


def test_train_one_step_is_adamw_on_the_clipped_mean_loss(tiny_model):
    """Oracle: single-sample backward passes, clipping, AdamW by hand; the norm before clipping."""
    start = get_adapter(tiny_model)
    trained = run(tiny_model, start, steps=1, batch_size=3, max_grad_norm=0.01, weight_decay=0.1)
    set_adapter(tiny_model, start)
    parameters = [p for p in tiny_model.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    total = 0.0
    for sample in SAMPLES[:3]:
        tokens = encode(tiny_model, sample, max_length=LENGTH)
        ids = torch.as_tensor(np.asarray(tokens.tokens), dtype=torch.int64)[None]
        chances = tiny_model.model(input_ids=ids).logits[0].log_softmax(dim=-1)
        places = range(tokens.response_start, len(tokens.tokens))
        loss = -torch.stack([chances[t - 1, ids[0, t]] for t in places]).mean() / 3
        loss.backward()
        total += float(loss.detach())
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, 0.01))
    optimizer.step()
    tiny_model.model.zero_grad(set_to_none=True)
    assert norm > 0.01
    assert trained.gradient_norms == (pytest.approx(norm, rel=1e-4),)
    assert gap(trained.adapter, get_adapter(tiny_model)) < 2e-5  # fp32; Adam's first step is ±1e-2
    assert trained.losses == (pytest.approx(total, rel=1e-5),)


def test_train_weighs_each_sample_by_its_own_weight(tiny_model):
    """Oracle: the gradient of one step is that of (1 / n) Σ w_i ℓ_i by hand, in any order."""
    start = get_adapter(tiny_model)
    weights = np.array([0.5, 9.0, 2.0, 0.0, 1.0, 7.0])
    order = Order(indices=np.array([2, 0, 3, 1, 4, 5]))
    seen = []

    def objective(losses, parameters, initial):  # noqa: ARG001 - the Protocol's shape
        value = losses.mean()
        seen.append(torch.autograd.grad(value, list(parameters.values()), retain_graph=True))
        return value

    run(tiny_model, start, steps=1, batch_size=3, order=order, weights=weights, objective=objective)
    set_adapter(tiny_model, start)
    parameters = [p for p in tiny_model.model.parameters() if p.requires_grad]
    total = 0.0
    for place in (2, 0, 3):
        batch = collate([encode(tiny_model, SAMPLES[place], max_length=LENGTH)])
        total = total + weights[place] * sample_losses(tiny_model.model, batch)[0] / 3
    expected = torch.autograd.grad(total, parameters)
    largest = max(float(one.abs().max()) for one in expected)
    for came, one in zip(seen[0], expected, strict=True):
        assert float((came - one).abs().max()) < 1e-5 * largest  # fp32


def test_train_with_weights_of_one_is_without(tiny_model):
    """Equal weights of 1 change nothing, bit for bit."""
    start = get_adapter(tiny_model)
    plain, weighed = run(tiny_model, start), run(tiny_model, start, weights=np.ones(6))
    assert adapter_hash(plain.adapter) == adapter_hash(weighed.adapter)
    assert plain.losses == weighed.losses


def test_train_begins_a_stage_with_its_first_sample(tiny_model):
    """Passes over a stage's samples begin with its first step, not with the plan's."""
    start = get_adapter(tiny_model)
    later = run(tiny_model, start, step_offset=2, first_step=2, total_steps=5)
    first = run(tiny_model, start, total_steps=5)
    assert later.losses == first.losses


def test_train_accumulation_is_a_larger_batch(tiny_model):
    """Two passes of two samples equal one of four, to rounding."""
    start = get_adapter(tiny_model)
    parts = run(tiny_model, start, batch_size=2, accumulation=2)
    whole = run(tiny_model, start, batch_size=4)
    assert gap(parts.adapter, whole.adapter) < 1e-4  # fp32, 3 steps of AdamW at 1e-2
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)


def test_train_accumulation_adds_the_proximal_term_once(tiny_model):
    """The pull does not grow with the number of passes of a step."""
    start = get_adapter(tiny_model)
    parts = run(tiny_model, start, batch_size=2, accumulation=2, objective=proximal(mu=1.0))
    whole = run(tiny_model, start, batch_size=4, objective=proximal(mu=1.0))
    assert gap(parts.adapter, whole.adapter) < 1e-4  # fp32, 3 steps of AdamW at 1e-2


def test_train_rounds_follow_one_learning_rate_plan(tiny_model):
    """Two rounds of three steps have the rates of one plan of six, warm-up included."""
    start = get_adapter(tiny_model)
    plan = {"total_steps": 6, "schedule": "cosine", "warmup_share": 0.34}
    whole = run(tiny_model, start, steps=6, **plan)
    rounds = [run(tiny_model, start, step_offset=offset, **plan).learning_rate for offset in (0, 3)]
    assert sum(rounds) / 2 == pytest.approx(whole.learning_rate, rel=1e-12)
    assert rounds[0] > rounds[1]


def test_train_goes_on_with_the_samples(tiny_model):
    """The second round starts with the samples that the first did not reach."""
    start = get_adapter(tiny_model)
    second = run(tiny_model, start, step_offset=2, total_steps=3, steps=1)
    alone = run(tiny_model, start, SAMPLES[4:], steps=1)
    assert second.losses == alone.losses


@pytest.mark.parametrize(
    ("best_last", "schedule", "offset", "warned"),
    [
        (True, "cosine", 0, 1),
        (True, "cosine", 3, 0),
        (True, "constant", 0, 0),
        (False, "cosine", 0, 0),
    ],
)
def test_train_warns_once_of_a_rate_that_undoes_the_order(
    tiny_model, caplog, best_last, schedule, offset, warned
):
    """Best last under a rate that ends low: a warning in the first round and no other."""
    order = replace(in_order(), best_last=best_last)
    plan = {"steps": 1, "total_steps": 12, "step_offset": offset, "schedule": schedule}
    with caplog.at_level(logging.WARNING, logger="fedwinnow.client.training.local_training"):
        run(tiny_model, get_adapter(tiny_model), order=order, **plan)
    assert len(caplog.records) == warned


def test_train_proximal_with_mu_zero_is_sft(tiny_model):
    """No pull, no difference, bit for bit."""
    start = get_adapter(tiny_model)
    plain = run(tiny_model, start)
    pulled = run(tiny_model, start, objective=proximal(mu=0.0))
    assert adapter_hash(plain.adapter) == adapter_hash(pulled.adapter)


def test_train_proximal_with_large_mu_stays_at_the_start(tiny_model):
    """The stronger the pull, the shorter the way."""
    start = get_adapter(tiny_model)
    plan = {"steps": 12, "total_steps": 12, "schedule": "linear", "learning_rate": 3e-3}
    free = distance(run(tiny_model, start, **plan).adapter, start)
    held = distance(run(tiny_model, start, objective=proximal(mu=1e4), **plan).adapter, start)
    assert held < 0.25 * free


def test_train_checkpointing_changes_memory_not_results(dropping):
    """Gradient checkpointing gives the same adapter, dropout included, and is off afterwards."""
    start = get_adapter(dropping)
    plain = run(dropping, start)
    saved = run(dropping, start, gradient_checkpointing=True)
    again = run(dropping, start)
    assert gap(plain.adapter, saved.adapter) < 1e-6  # fp32
    assert adapter_hash(plain.adapter) == adapter_hash(again.adapter)


def test_train_mixed_precision_leaves_no_trace(tiny_model):
    """bfloat16 trains and differs; the next plain round is as if it had not been."""
    start = get_adapter(tiny_model)
    plain = run(tiny_model, start)
    mixed = run(tiny_model, start, precision="bf16")
    again = run(tiny_model, start)
    assert adapter_hash(mixed.adapter) != adapter_hash(plain.adapter)
    assert adapter_hash(again.adapter) == adapter_hash(plain.adapter)
    assert mixed.losses == pytest.approx(plain.losses, rel=0.02)  # bf16 has 8 bits


@pytest.mark.skipif(torch.cuda.is_available(), reason="float16 runs on CUDA")
def test_train_float16_on_a_cpu_is_a_named_error(tiny_model):
    """The precision that does not run here is named, with what to set."""
    with pytest.raises(ConfigError, match=r"training\.precision = 'fp16'"):
        run(tiny_model, get_adapter(tiny_model), precision="fp16")


def test_train_passes_over_samples_without_a_target(tiny_model):
    """A sample without a response token changes nothing; if all are, that is named."""
    start = get_adapter(tiny_model)
    cut = Sample(id="cut", prompt="question", response="")
    mixed = (SAMPLES[0], cut, SAMPLES[1], cut, cut, SAMPLES[2], SAMPLES[3])
    passed = run(tiny_model, start, mixed, steps=2)
    plain = run(tiny_model, start, SAMPLES[:4], steps=2)
    assert adapter_hash(passed.adapter) == adapter_hash(plain.adapter)
    with pytest.raises(EmptySelectionError, match=r"none among 2"):
        run(tiny_model, start, (cut, cut))


def test_train_of_no_sample_is_named(tiny_model):
    """0 samples is an EmptySelectionError and leaves the adapter alone."""
    start = get_adapter(tiny_model)
    with pytest.raises(EmptySelectionError, match="got 0"):
        run(tiny_model, start, ())
    assert adapter_hash(get_adapter(tiny_model)) == adapter_hash(start)


def test_train_of_one_sample_fills_its_batches(tiny_model):
    """One sample in batches of two trains as it would alone."""
    start = get_adapter(tiny_model)
    doubled = run(tiny_model, start, SAMPLES[:1], batch_size=2)
    single = run(tiny_model, start, SAMPLES[:1], batch_size=1)
    assert gap(doubled.adapter, single.adapter) < 1e-4  # fp32, 3 steps of AdamW at 1e-2


def test_train_names_the_step_of_a_nan(tiny_model):
    """A NaN loss stops with its step; the model is back in its mode, without gradients."""
    start = get_adapter(tiny_model)
    calls = []

    def objective(losses, parameters, initial):  # noqa: ARG001 - the Protocol's shape
        calls.append(1)
        return losses.mean() * (math.nan if len(calls) == 2 else 1.0)

    with pytest.raises(NonFiniteError, match="training step 2 of 3"):
        run(tiny_model, start, objective=objective)
    assert not tiny_model.model.training
    assert all(p.grad is None for p in tiny_model.model.parameters())


def test_train_refuses_a_wrong_order_or_plan(tiny_model):
    """An order that is no permutation and steps beyond the plan are named."""
    start = get_adapter(tiny_model)
    with pytest.raises(PluginError, match=r"training\.ordering"):
        run(tiny_model, start, order=replace(in_order(), indices=np.zeros(6, dtype=np.int64)))
    with pytest.raises(ProtocolError, match="plan of 3 steps"):
        run(tiny_model, start, step_offset=1)


def test_train_starts_from_a_merged_adapter_of_any_rank(tiny_model):
    """Two sites' stacked adapter has twice the rank, trains, and keeps that rank."""
    start = get_adapter(tiny_model)
    sites = {
        "a": run(tiny_model, start, SAMPLES[:3]).adapter,
        "b": run(tiny_model, start, SAMPLES[3:]).adapter,
    }
    merged = stack()(sites, {"a": 0.5, "b": 0.5}, start).adapter
    trained = run(tiny_model, merged)
    assert {factor.shape[0] for factor in trained.adapter.a.values()} == {8}
    assert trained.adapter.scales == start.scales
    assert distance(trained.adapter, merged) > 0


def test_train_changes_the_adapter_only(tiny_model):
    """The frozen base is the same, bit for bit, and so are the losses of the start."""
    start = get_adapter(tiny_model)
    frozen = {n: p.clone() for n, p in tiny_model.model.named_parameters() if not p.requires_grad}
    batch = collate([encode(tiny_model, s, max_length=LENGTH) for s in SAMPLES])
    before = sample_losses(tiny_model.model, batch)
    run(tiny_model, start)
    for name, value in tiny_model.model.named_parameters():
        if name in frozen:
            assert torch.equal(value, frozen[name])
    set_adapter(tiny_model, start)
    assert torch.equal(before, sample_losses(tiny_model.model, batch))


def test_clipped_samples_move_the_adapter_no_further_than_their_bound(tiny_model):
    """Law: a bound that no sample reaches changes nothing; one that all exceed scales the step."""
    start = get_adapter(tiny_model)
    plain = run(tiny_model, start, max_grad_norm=1e9)
    wide = run(tiny_model, start, max_grad_norm=1e9, sample_grad_norm=1e6)
    assert gap(plain.adapter, wide.adapter) <= 1e-6
    for bound in (1e-3, 1e-5):
        tight = run(tiny_model, start, max_grad_norm=1e9, sample_grad_norm=bound)
        assert max(tight.gradient_norms) <= bound * (1 + 1e-6) < min(plain.gradient_norms)
    again = run(tiny_model, start, max_grad_norm=1e9, sample_grad_norm=1e-5, accumulation=2)
    assert max(again.gradient_norms) <= 1e-5 * (1 + 1e-6)
    with pytest.raises(ConfigError, match=r"training\.precision"):
        TrainingSection(precision="fp16", sample_grad_norm=1.0)
