"""Laws of evaluation: one loss per sample, whatever the batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedwinnow.client.measuring.evaluation import evaluate
from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.curation.config.scoring import AdapterSection, ModelSection
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import NonFiniteError
from fedwinnow.curation.model.lora_model import get_adapter, set_adapter
from fedwinnow.curation.model.pretrained import encode, load_model

SAMPLES = tuple(
    Sample(id=str(i), prompt=f"question {i}" * (1 + i % 2), response="answer " * (1 + i % 4))
    for i in range(7)
)
LENGTH = 96
OPTIONS = PassOptions(batch_tokens=64, max_length=LENGTH)


@pytest.fixture
def dropping(tiny_model_folder):
    """The tiny model with dropout before its adapter."""
    return load_model(
        ModelSection(name=str(tiny_model_folder), max_length=LENGTH),
        AdapterSection(rank=4, alpha=8.0, dropout=0.2, targets=("q_proj", "v_proj")),
        seed=0,
    )


def by_hand(tiny_model, sample):
    """Mean of −log p over body and end token, one sample at a time."""
    tokens = encode(tiny_model, sample, max_length=LENGTH)
    ids = torch.as_tensor(np.asarray(tokens.tokens), dtype=torch.int64)[None]
    with torch.no_grad():
        chances = tiny_model.model(input_ids=ids).logits[0].double().log_softmax(dim=-1)
    places = range(tokens.response_start, len(tokens.tokens))
    return -float(np.mean([float(chances[t - 1, ids[0, t]]) for t in places]))


def test_evaluate_is_the_mean_token_loss(tiny_model):
    """Oracle: single samples without padding, in the samples' order, for any batch size."""
    expected = np.array([by_hand(tiny_model, sample) for sample in SAMPLES])
    for batch_tokens in (1, 64, 100_000):
        options = replace(OPTIONS, batch_tokens=batch_tokens)
        losses = evaluate(tiny_model, SAMPLES, options)
        assert losses.dtype == np.float64
        np.testing.assert_allclose(losses, expected, rtol=1e-5)  # fp32


def test_evaluate_turns_dropout_off_and_restores_the_mode(dropping):
    """A model left in training mode is evaluated without dropout and stays in that mode."""
    adapter = get_adapter(dropping)
    set_adapter(
        dropping,
        type(adapter)(
            base=adapter.base,
            a=adapter.a,
            b={m: torch.ones_like(t) for m, t in adapter.b.items()},
            scales=adapter.scales,
        ),
    )
    expected = evaluate(dropping, SAMPLES, OPTIONS)
    dropping.model.train()
    again = evaluate(dropping, SAMPLES, OPTIONS)
    assert dropping.model.training
    np.testing.assert_array_equal(expected, again)


def test_evaluate_marks_samples_without_a_target(tiny_model):
    """NaN exactly where there is no response token; no sample gives no loss."""
    cut = Sample(id="cut", prompt="question", response="")
    losses = evaluate(tiny_model, (SAMPLES[0], cut, SAMPLES[1]), OPTIONS)
    assert np.isnan(losses).tolist() == [False, True, False]
    assert evaluate(tiny_model, (), OPTIONS).shape == (0,)
    assert np.isnan(evaluate(tiny_model, (cut,), OPTIONS)).all()


def test_evaluate_names_a_broken_model(tiny_model):
    """A NaN from the model is an error with a count, never a number in a sum."""
    with torch.no_grad():
        tiny_model.model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="for 7 of 7 samples"):
        evaluate(tiny_model, SAMPLES, OPTIONS)
