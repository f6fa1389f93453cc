"""What training steps see on their way: the same numbers, where the weights are the same."""

import numpy as np
import pytest
import torch
from warmed import OPTIONS, apart, references_of, some, table_of, warmed

from fedwinnow.client.measuring.references import reference_state
from fedwinnow.client.training.local_training import train
from fedwinnow.curation.config.scoring import AdapterSection, ModelSection
from fedwinnow.curation.config.training import TrainingSection
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.model.lora_model import get_adapter, set_adapter
from fedwinnow.curation.model.pretrained import load_model
from fedwinnow.curation.signal_columns import GRADIENTS
from fedwinnow.simulations.benchmarks import piggyback
from fedwinnow.simulations.benchmarks.piggyback import GIVEN, Piggyback
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
        learning_rate=1e-2, schedule="constant", seed=3, options=OPTIONS, watch=watch,
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
        monkeypatch.setattr(piggyback, "why_no_hooks", lambda _: "as if it were compiled")
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


def test_rows_of_the_first_step_are_those_of_measuring_and_unvisited_ones_are_nan(model):
    """Six of nine samples are in the step; the others, and one without a target, have no row."""
    samples = [*some(9, "s"), Sample(id="none", prompt="p", response="", domain="x")]
    visits, references = watched(model, samples, {"loss", "dot", "norm"})
    assert visits.steps.tolist() == [0] * 6 + [-1] * 4
    hooks = table_of(model, samples, references, {"loss", "dot", "norm"}, backend="hooks")
    for name, values in hooks.columns.items():
        assert apart(visits.columns[name][:6], values[:6]) <= 1e-5, name
        assert np.isnan(visits.columns[name][6:]).all()


def test_rows_of_later_steps_are_not_those_of_measuring(model):
    """A sample that a later step visited again, at other weights, has other numbers."""
    samples = some(6, "s")
    visits, references = watched(model, samples, {"dot"}, steps=2)
    assert visits.steps.tolist() == [1] * 6
    hooks = table_of(model, samples, references, {"dot"}, backend="hooks")
    assert apart(visits.columns["dot"], hooks.columns["dot"]) > 1e-3


def test_last_layers_of_piggyback_equal_those_of_hooks(model):
    """A training step, whose own backward pass goes through all layers: ≤ 1e-5 of every column."""
    samples, adapter = some(4, "s"), get_adapter(model)
    columns, anchors = GRADIENTS | {"loss"}, some(6, "r")
    references = reference_state(
        model, anchors, OPTIONS, columns=columns, corrupted=anchors, layers=1
    )
    watch = Piggyback(samples=samples, columns=columns, references=references)
    round_of(model, samples, adapter, watch=watch, batch_size=4, accumulation=1)
    set_adapter(model, adapter)
    hooks = table_of(model, samples, references, columns, backend="hooks")
    for name, values in hooks.columns.items():
        assert apart(watch.visits().columns[name], values) <= 1e-5, name


def test_a_sample_of_weight_zero_counts_as_not_visited(model):
    """Its gradient is not in the pass, so its row is NaN."""
    samples = some(6, "s")
    weights = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    visits, references = watched(model, samples, {"norm"}, weights=weights)
    assert visits.steps.tolist() == [0, -1, 0, 0, 0, 0]
    assert np.isnan(visits.columns["norm"][1])
    hooks = table_of(model, samples, references, {"norm"}, backend="hooks")
    seen = visits.steps == 0
    assert apart(visits.columns["norm"][seen], hooks.columns["norm"][seen]) <= 1e-5


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
