"""Steps of distinct samples: their group, their passes and their weights."""

from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedwinnow.client.training import distinct_steps
from fedwinnow.client.training.distinct_steps import StepGroup, even_out, step_batches
from fedwinnow.curation.errors import EmptySelectionError
from fedwinnow.strategies.interfaces.ordering import Order

WEIGHTS = st.lists(st.just(0.0) | st.floats(1e-9, 1e6), min_size=1, max_size=40)


@pytest.fixture(autouse=True)
def _plain_batches(monkeypatch):
    monkeypatch.setattr(distinct_steps, "collate", lambda chosen: chosen)


def steps_of(order, make_up, size, number, *, blank=(), before=0, weights=None):
    """The places of the first ``number`` steps; ``blank`` samples have no target."""
    batches = step_batches(
        order, lambda place: SimpleNamespace(has_target=place not in blank), seed=1,
        steps_before=before, make_up=make_up, size=size,
        weights=np.ones(len(order.indices)) if weights is None else weights,
    )  # fmt: skip
    each = (make_up.private_draws + make_up.public_draws) // size
    taken = list(islice(batches, each * number))
    steps = [taken[i * each : (i + 1) * each] for i in range(number)]
    places = [[place for batch in step for place in batch.places] for step in steps]
    return places, [torch.cat([batch.weights for batch in step]).numpy() for step in steps]


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 30), st.integers(0, 20), st.sampled_from([(2, 1), (2, 2), (1, 4)]), st.data())
def test_steps_hold_a_group_of_distinct_samples(private, public, shape, data):
    """Law: no sample twice in a step, at least the group private, every pass holds each once."""
    size, accumulation = shape
    draws = size * accumulation
    group = data.draw(st.integers(1, draws))
    made = StepGroup.of(group=group, private=private, public=public, draws=draws)
    assert made.private_draws + made.public_draws == draws
    order = Order(indices=np.random.default_rng(3).permutation(private + public))
    steps, _ = steps_of(order, made, size, 12, before=data.draw(st.integers(0, 3)))
    for step in steps:
        assert len(set(step)) == draws
        assert sum(place < private for place in step) == made.private_draws >= group
    counts = Counter(place for step in steps for place in step if place < private)
    told = [counts[place] for place in range(private)]
    assert max(told) - min(told) <= 3  # a resumed pass, a whole one, one that has begun


def test_steps_of_too_few_with_a_target_are_refused():
    """Edge: a step of 4 cannot be made of 3 samples that can be learnt from."""
    made = StepGroup.of(group=2, private=6, public=0, draws=4)
    order = Order(indices=np.arange(6))
    assert all(len(set(s)) == 4 for s in steps_of(order, made, 2, 5, blank=(0, 1))[0])
    with pytest.raises(EmptySelectionError, match="distinct"):
        steps_of(order, made, 2, 1, blank=(0, 1, 2))


def test_public_draws_leave_the_group_its_room():
    """Oracle: public rows get their share of a step, as far as the private group leaves room."""
    whole = StepGroup.of(group=32, private=300, public=100, draws=64)
    assert (whole.private_draws, whole.public_draws) == (48, 16)
    tight = StepGroup.of(group=32, private=100, public=300, draws=40)
    assert (tight.private_draws, tight.public_draws) == (32, 8)
    assert StepGroup.of(group=32, private=100, public=300, draws=32).public_draws == 0


@given(WEIGHTS, st.data())
def test_evened_weights_stand_on_a_group(values, data):
    """Law: Kish's number is at least the group, sum and order stay, enough samples: unchanged."""
    weights = np.array(values)
    group = data.draw(st.integers(1, len(values)))
    evened = even_out(weights, group)
    assert evened.sum() == pytest.approx(weights.sum())
    assert (evened >= -1e-9 * weights.max()).all()
    if weights.sum() > 0:
        assert evened.sum() ** 2 / (evened**2).sum() >= group * (1 - 1e-6)
        if weights.sum() ** 2 / (weights**2).sum() >= group * (1 + 1e-6):
            assert evened == pytest.approx(weights, rel=1e-6, abs=1e-6 * weights.max())
    assert (np.diff(evened[np.argsort(weights)]) >= -1e-9 * max(1.0, weights.max())).all()


def test_one_heavy_sample_among_a_steps_draws_cannot_stand_alone():
    """Law: of 320 weights of which 34 count, no step of 32 stands on fewer than 32 samples."""
    weights = np.full(320, 1e-12)
    weights[np.random.default_rng(3).choice(320, 34, replace=False)] = 1.0
    made = StepGroup.of(group=32, private=320, public=0, draws=32)
    order = Order(indices=np.random.default_rng(4).permutation(320))
    _, evened = steps_of(order, made, 4, 10, weights=weights)
    assert all(w.sum() ** 2 / (w**2).sum() > 32 * (1 - 1e-9) for w in evened)
