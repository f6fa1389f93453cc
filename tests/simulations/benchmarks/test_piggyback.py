"""What training steps see on their way: the same numbers, where the weights are the same."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from warmed import READ, apart, references_of, some, table_of, warmed

from fedwinnow.client import piggyback
from fedwinnow.client.measuring.references import reference_state
from fedwinnow.client.piggyback import GIVEN, Piggyback
from fedwinnow.client.training.local_training import train
from fedwinnow.curation.config.scoring import AdapterSection, ModelSection
from fedwinnow.curation.config.training import TrainingSection
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.model.pretrained import get_adapter, load_model, set_adapter
from fedwinnow.curation.signal_columns import GRADIENTS
from fedwinnow.strategies.interfaces.ordering import Order
from fedwinnow.strategies.registry import build


@pytest.fixture
def model(tiny_model):
    """The tiny model with B ≠ 0, as after warm-up."""
    warmed(tiny_model)
    return tiny_model


def round_of(model, samples, adapter, *, watch=None, steps=1, weights=None, **section):
    """A round of training in the samples' order."""
    size = {"batch_size": 3, "accumulation": 2} | section
    return train(
        model, samples, adapter=adapter, section=TrainingSection(**size), steps=steps,
        step_offset=0, total_steps=steps, order=Order(indices=np.arange(len(samples))),
        objective=build("objective", "proximal", {"mu": 0.1}), weights=weights,
        learning_rate=1e-2, schedule="constant", seed=3, max_length=READ["max_length"], watch=watch,
    )  # fmt: skip


def watched(model, samples, columns=GIVEN, **options):
    """What a round saw of the samples, and the references and adapter that it began with."""
    adapter = get_adapter(model)
    references = references_of(model, columns)
    watch = Piggyback(samples=samples, columns=frozenset(columns), references=references)
    round_of(model, samples, adapter, watch=watch, **options)
    set_adapter(model, adapter)
    return watch.visits(), references


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("hookable", [False, True])
def test_piggyback_equals_measuring_the_same_samples_at_the_same_weights(
    model, checkpointing, hookable, monkeypatch
):
    """One step of two unequally weighted batches, a proximal term: ≤ 1e-5 of every column.

    By hooks and, as where a model ignores them, by probes.
    """
    if not hookable:
        monkeypatch.setattr(piggyback, "unhookable", lambda _: "as if it were compiled")
    samples = some(6, "s")
    weights = np.array([1.0, 0.5, 2.0, 1.0, 0.1, 3.0])
    visits, references = watched(
        model, samples, weights=weights, gradient_checkpointing=checkpointing
    )
    assert visits.steps.tolist() == [0] * 6
    measured = table_of(model, samples, references, GIVEN, backend="hooks")
    assert visits.columns.keys() == measured.columns.keys() == GIVEN
    for name, values in measured.columns.items():
        assert apart(visits.columns[name], values) <= 1e-5, name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_is_the_same_whoever_watches_up_to_rounding(model, checkpointing):
    """Losses, gradient norms and weights of three watched steps in float64, to 1e-9."""
    net, section = model.model.double(), {"steps": 3, "gradient_checkpointing": checkpointing}
    samples, adapter = some(5, "s"), get_adapter(model)

    def weights():
        return {n: p.detach().clone() for n, p in net.named_parameters() if p.requires_grad}

    start, plain = weights(), round_of(model, samples, adapter, **section)
    expected = weights()
    set_adapter(model, adapter)
    watch = Piggyback(samples=samples, columns=GIVEN, references=references_of(model, GIVEN))
    seen = round_of(model, samples, adapter, watch=watch, **section)
    assert seen.losses == pytest.approx(plain.losses, rel=1e-9)
    assert seen.gradient_norms == pytest.approx(plain.gradient_norms, rel=1e-9)
    for name, values in weights().items():
        assert torch.allclose(values, expected[name], rtol=0.0, atol=1e-9)
        assert not torch.equal(values, start[name])


def test_samples_that_no_step_visited_are_measured_and_said_so(model, caplog):
    """Rows of the first step are taken as they are, the others are measured; a warning counts."""
    samples = [*some(9, "s"), Sample(id="none", prompt="p", response="", domain="x")]
    visits, references = watched(model, samples, {"loss", "dot", "norm"})
    told = []
    with caplog.at_level(logging.WARNING, "fedwinnow.client.measuring.measuring_pass"):
        found = table_of(
            model, samples, references, {"loss", "dot", "norm"}, backend="piggyback",
            visits=visits, progress=lambda *count: told.append(count),
        )  # fmt: skip
    assert "3 of 9 samples need a pass of their own (no step visited them at these" in caplog.text
    assert told[-1] == (3, 3)
    hooks = table_of(model, samples, references, {"loss", "dot", "norm"}, backend="hooks")
    assert found.status.tolist() == hooks.status.tolist()
    for name, values in hooks.columns.items():
        assert np.array_equal(found.columns[name][:6], visits.columns[name][:6])
        assert apart(found.columns[name][:9], values[:9]) <= 1e-5, name


def test_rows_of_later_steps_are_not_taken(model):
    """A sample that a later step visited again, at other weights, is measured anew."""
    samples = some(6, "s")
    visits, references = watched(model, samples, {"dot"}, steps=2)
    assert visits.steps.tolist() == [1] * 6
    found = table_of(model, samples, references, {"dot"}, backend="piggyback", visits=visits)
    hooks = table_of(model, samples, references, {"dot"}, backend="hooks")
    assert np.array_equal(found.columns["dot"], hooks.columns["dot"])
    assert apart(visits.columns["dot"], hooks.columns["dot"]) > 1e-3


def test_without_a_step_at_these_weights_all_is_measured_with_the_reason(model, caplog):
    """No visits, another adapter, other columns or references: a reason each, the same table."""
    samples, columns = some(6, "s"), frozenset({"dot"})
    visits, references = watched(model, samples, columns)
    adapter = get_adapter(model)

    def said(visits, columns=columns, references=references):
        caplog.clear()
        found = table_of(model, samples, references, columns, backend="piggyback", visits=visits)
        hooks = table_of(model, samples, references, columns, backend="hooks")
        for name, values in hooks.columns.items():
            assert np.array_equal(found.columns[name], values)
        return caplog.text

    assert "6 of 6 samples need a pass of their own (no training step came by)" in said(None)
    assert "no step noted norm" in said(visits, columns | {"norm"})
    set_adapter(model, replace(adapter, b={n: 2 * b for n, b in adapter.b.items()}))
    assert "the steps began at adapter" in said(visits)
    set_adapter(model, adapter)
    others = reference_state(model, some(4, "other"), columns=columns, **READ)
    assert "the steps had other references" in said(visits, references=others)
    mixed, _ = watched(model, samples, columns, precision="bf16")
    assert "mixed precision" in said(mixed)


def test_a_sample_of_weight_zero_counts_as_not_visited(model):
    """Its gradient is not in the pass, so its row is NaN and it is measured."""
    samples = some(6, "s")
    weights = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    visits, references = watched(model, samples, {"norm"}, weights=weights)
    assert visits.steps.tolist() == [0, -1, 0, 0, 0, 0]
    assert np.isnan(visits.columns["norm"][1])
    found = table_of(model, samples, references, {"norm"}, backend="piggyback", visits=visits)
    hooks = table_of(model, samples, references, {"norm"}, backend="hooks")
    assert apart(found.columns["norm"], hooks.columns["norm"]) <= 1e-5


def test_dropout_and_b_zero_and_missing_references_are_refused(tiny_model, tiny_model_folder):
    """A step with dropout sees another model; at B = 0 the gradient of A is zero."""
    samples = some(3, "s")
    none = Piggyback(samples=samples, columns=frozenset({"dot"}), references=None)
    with pytest.raises(ModelError, match="dot need reference anchors"):
        round_of(tiny_model, samples, get_adapter(tiny_model), watch=none)
    start = get_adapter(tiny_model)
    adapter = warmed(tiny_model)
    references = references_of(tiny_model, GRADIENTS)
    watch = Piggyback(samples=samples, columns=GRADIENTS, references=references)
    with pytest.raises(ModelError, match="B = 0"):
        round_of(tiny_model, samples, start, watch=watch)
    dropping = load_model(
        ModelSection(name=str(tiny_model_folder)), AdapterSection(rank=4, alpha=8.0, dropout=0.5),
        seed=0,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"adapter\.dropout = 0"):
        round_of(dropping, samples, adapter, watch=watch)
    unwatched = Piggyback(samples=samples, columns=GRADIENTS, references=references)
    with pytest.raises(ModelError, match="no training round was watched"):
        unwatched.visits()
