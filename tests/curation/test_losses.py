"""Laws of sample losses: padding and neighbours change nothing, batches keep to their budget."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.curation.losses import PADDED, collate, plan_batches, sample_losses
from fedwinnow.curation.modeling import Encoding


def encoding(size: int, start: int, seed: int) -> Encoding:
    """Random tokens, the last of which ends the turn."""
    tokens = np.random.default_rng(seed).integers(3, 60, size).astype(np.int32)
    return Encoding(tokens=tokens, response_start=start, body_end=size - 1)


def test_sample_losses_ignore_neighbours(tiny_model):
    """A sample's loss is the same alone and in any batch, and so is its gradient."""
    encodings = [encoding(9, 4, 0), encoding(21, 18, 1), encoding(14, 1, 2)]
    together = sample_losses(tiny_model.model, collate(encodings))
    for value, one in zip(together, encodings, strict=True):
        alone = sample_losses(tiny_model.model, collate([one]))
        torch.testing.assert_close(value, alone[0], rtol=1e-5, atol=1e-6)  # fp32


def test_sample_losses_count_body_and_end_token_only(tiny_model):
    """Oracle: the mean of −log p at the places from response_start on."""
    one = encoding(12, 5, 3)
    ids = torch.as_tensor(one.tokens, dtype=torch.int64)[None]
    chances = tiny_model.model(input_ids=ids).logits[0].log_softmax(dim=-1)
    expected = -torch.stack([chances[t - 1, ids[0, t]] for t in range(5, 12)]).mean()
    value = sample_losses(tiny_model.model, collate([one]))[0]
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)  # fp32


def test_collate_never_counts_the_first_token():
    """A response that starts at place 0 is counted from place 1 on: nothing predicts place 0."""
    batch = collate([encoding(4, 0, 0), encoding(6, 3, 1)])
    assert batch.targets.tolist() == [
        [False, True, True, True, False, False],
        [False, False, False, True, True, True],
    ]
    assert batch.mask.sum(dim=1).tolist() == [4, 6]
    assert batch.first == 1


@given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 200))
def test_plan_batches_covers_all_within_the_budget(lengths, budget):
    """Every position once; count × longest stays within the budget unless one alone exceeds it."""
    array = np.array(lengths, dtype=np.int64)
    batches = plan_batches(array, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * array[batch].max() <= budget


@given(lengths=st.lists(st.integers(1, 500), min_size=1, max_size=60), budget=st.integers(1, 4000))
def test_plan_batches_pads_at_most_a_tenth(lengths, budget):
    """However ragged the lengths and however large the budget; and a batch ends only for that."""
    array = np.array(lengths, dtype=np.int64)
    batches = plan_batches(array, budget)
    for batch in batches:
        assert len(batch) * array[batch].max() <= PADDED * array[batch].sum()
    for batch, after in pairwise(batches):
        more = [*batch, after[0]]
        padded = len(more) * array[more].max()
        assert padded > budget or padded > PADDED * array[more].sum()


@pytest.mark.parametrize("budget", [1, 64, 10_000])
def test_plan_batches_is_longest_first(budget):
    """The largest batch comes first, so that memory runs out at once or never."""
    lengths = np.array([5, 30, 12, 30, 7])
    flat = [int(i) for batch in plan_batches(lengths, budget) for i in batch]
    assert flat == [1, 3, 2, 4, 0]
