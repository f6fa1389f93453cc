"""Laws of sample losses: padding and neighbours change nothing."""

import numpy as np
import torch

from fedwinnow.curation.model.token_losses import collate, sample_losses
from fedwinnow.curation.tokens.tokenization import Encoding


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
