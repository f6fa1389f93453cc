"""Laws of passes that run out of memory on their way: the same numbers as if they had not."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from warmed import OPTIONS, apart, references_of, some, table_of, warmed

from fedwinnow.client.measuring import batching, datainf
from fedwinnow.client.measuring.evaluation import evaluate
from fedwinnow.client.measuring.measuring_pass import measure
from fedwinnow.client.measuring.references import reference_state
from fedwinnow.client.signals.teacher import teacher_confidences
from fedwinnow.client.training.anchor_gradient import anchor_gradient
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.gradients.contraction import Contraction, WeightedSums
from fedwinnow.curation.signal_columns import GRADIENTS, KNOWN, OTHER_MODELS

BEARS = 120
"""Tokens of the largest batch that memory bears; OPTIONS ask for 300."""
LIMIT = 1e-5
"""Share of the largest number: float32, other batches."""
EVERY = KNOWN - OTHER_MODELS


@pytest.fixture
def failing(tiny_model, monkeypatch):
    """A warmed model whose forward pass fails on more tokens than memory bears."""
    warmed(tiny_model)
    monkeypatch.setattr(batching, "release_memory", lambda: None)
    failed = []

    def refuse(_module, _inputs, given):
        if failing.on and given["input_ids"].numel() > BEARS:
            failed.append(given["input_ids"].numel())
            raise torch.OutOfMemoryError("CUDA out of memory.")  # noqa: TRY003, EM101 - as torch says it

    tiny_model.model.register_forward_pre_hook(refuse, with_kwargs=True)
    failing = SimpleNamespace(loaded=tiny_model, failed=failed, on=False, backward=False)
    return failing


def both(failing, compute, where="on"):
    """A result without and with failures in a forward pass, or a backward; there must be some."""
    plain = compute()
    failing.loaded.sizes.clear()
    setattr(failing, where, True)
    found = compute()
    assert failing.failed
    assert all(size.most for size in failing.loaded.sizes.values())
    return plain, found


@pytest.mark.parametrize("backend", ["hooks", "probe"])
def test_measuring_gives_the_same_table_when_memory_runs_out(failing, backend):
    """Every column of every row is as without a failure, up to rounding."""
    loaded, samples = failing.loaded, some(14, "s")
    references = references_of(loaded, EVERY, way=backend)
    plain, found = both(
        failing,
        lambda: measure(
            loaded, samples, OPTIONS, columns=EVERY, checkpoint=1, references=references,
            contrast=some(5, "c"), contrast_prompts=2, backend=backend,
        ),
    )  # fmt: skip
    assert (found.status == plain.status).all()
    for name, values in plain.columns.items():
        assert apart(found.columns[name], values) < LIMIT, name


def test_measuring_by_forward_passes_puts_its_adapter_back(failing):
    """A failure between θ + hG and θ − hG leaves the adapter as it was, and the same dots."""
    loaded, samples = failing.loaded, some(14, "s")
    references = references_of(loaded, frozenset({"dot"}))
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    plain, found = both(
        failing, lambda: table_of(loaded, samples, references, {"dot", "loss"}, backend="forward")
    )
    assert apart(found.columns["dot"], plain.columns["dot"]) < 0.01  # differences in float32
    assert all(torch.equal(before[name], v) for name, v in loaded.model.state_dict().items())


@pytest.mark.parametrize("way", ["hooks", "probe"])
def test_references_are_the_same_when_memory_runs_out_in_a_backward_pass(failing, monkeypatch, way):
    """Sums over batches count no anchor twice, though half of a batch's layers were added."""
    loaded, anchors = failing.loaded, some(14, "r")

    def breaking(cls):
        plain, calls = cls.__call__, [0]

        def call(self, name, gradients):
            plain(self, name, gradients)
            calls[0] += 1
            if failing.backward and len(gradients) > 3 and calls[0] % 3 == 0:  # amid the layers
                failing.failed.append(name)
                raise torch.OutOfMemoryError("CUDA out of memory.")  # noqa: TRY003, EM101 - as torch says it

        monkeypatch.setattr(cls, "__call__", call)

    for cls in (WeightedSums, datainf._Products, datainf._Sums):
        breaking(cls)
    columns = GRADIENTS | {"representation"}
    plain, found = both(failing, lambda: batches_of(loaded, anchors, columns, way), "backward")
    for mapping in ("means", "adam", "directions"):
        expected = getattr(plain, mapping)
        assert expected
        for name, values in expected.items():
            assert apart(getattr(found, mapping)[name].numpy(), values.numpy()) < 1e-4, mapping
    assert apart(found.gram, plain.gram) < LIMIT
    assert apart(found.states.numpy(), plain.states.numpy()) < LIMIT
    assert plain.moments is not None
    for name, values in plain.moments.second.items():
        assert apart(found.moments.second[name].numpy(), values.numpy()) < LIMIT


def batches_of(loaded, anchors, columns, way):
    """References of more anchors than a batch holds."""
    return reference_state(
        loaded,
        anchors,
        replace(OPTIONS, batch_tokens=600),
        columns=columns,
        corrupted=anchors,
        way=way,
    )


def test_measuring_drops_a_batch_that_fails_in_its_backward_pass(failing, monkeypatch):
    """Dots of half the layers are not added to those of the batch that runs instead."""
    loaded, samples = failing.loaded, some(14, "s")
    references = references_of(loaded, GRADIENTS)
    plain, calls = Contraction.__call__, [0]

    def call(self, name, gradients):
        plain(self, name, gradients)
        calls[0] += 1
        if failing.backward and len(gradients) > 3 and calls[0] % 3 == 0:
            failing.failed.append(name)
            raise MemoryError

    monkeypatch.setattr(Contraction, "__call__", call)
    expected, found = both(
        failing, lambda: table_of(loaded, samples, references, GRADIENTS), "backward"
    )
    for name, values in expected.columns.items():
        assert apart(found.columns[name], values) < LIMIT, name


def test_losses_are_the_same_when_memory_runs_out(failing):
    """Evaluation and a teacher's confidences: each value is that of its sample."""
    loaded, samples = failing.loaded, some(14, "s")
    plain, found = both(failing, partial(evaluate, loaded, samples, OPTIONS))
    assert apart(found, plain) < LIMIT
    failing.on = False
    plain, found = both(failing, partial(teacher_confidences, loaded, samples, OPTIONS))
    assert apart(found, plain) < LIMIT


def test_anchor_gradient_is_the_same_when_memory_runs_out(failing):
    """A mean over batches begins again, so no batch counts twice."""
    loaded = failing.loaded
    pool = SimpleNamespace(split=SimpleNamespace(reference=some(14, "r")))
    work = SimpleNamespace(loaded=loaded, pass_options=OPTIONS, data=pool)
    plain, found = both(failing, lambda: anchor_gradient(work))
    for name in plain.a:
        assert apart(found.a[name].numpy(), plain.a[name].numpy()) < LIMIT
        assert apart(found.b[name].numpy(), plain.b[name].numpy()) < LIMIT


def test_measuring_names_a_sample_that_is_too_long(failing):
    """A sample that no memory bears is an error with its length, and the model is as before."""
    loaded = failing.loaded
    references = references_of(loaded, GRADIENTS)
    failing.on = True
    samples = [*some(4, "s"), replace(some(1, "t")[0], response="so " * 80)]
    with pytest.raises(ModelError, match=r"one sample of 150 tokens.*model\.max_length below 150"):
        table_of(loaded, samples, references, GRADIENTS, replace(OPTIONS, max_length=150))
    short = table_of(loaded, samples[:4], references, GRADIENTS)
    assert np.isfinite(short.columns["dot"]).all()


def test_automatic_sizes_give_the_same_table(failing):
    """batch_tokens = 0 changes results by rounding only."""
    loaded, samples = failing.loaded, some(14, "s")
    references = references_of(loaded, GRADIENTS)
    fixed = table_of(loaded, samples, references, GRADIENTS | {"loss"})
    found = table_of(
        loaded, samples, references, GRADIENTS | {"loss"}, replace(OPTIONS, batch_tokens=0)
    )
    for name, values in fixed.columns.items():
        assert apart(found.columns[name], values) < LIMIT, name
    assert loaded.sizes["hooks"].grown >= 8
