"""Collect the last hidden states of a pass, and average them over the learnt bodies."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fedwinnow.curation.model.lora_model import LoadedModel
from fedwinnow.curation.model.token_losses import Batch
from fedwinnow.curation.tokens.tokenization import Encoding


@contextmanager
def last_hidden(loaded: LoadedModel) -> Iterator[list[Tensor]]:
    """Collect the last hidden states of each pass inside the block: the inputs of the head."""
    seen: list[Tensor] = []
    head = loaded.model.get_base_model().get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


def mean_states(hidden: Tensor, batch: Batch, encodings: Sequence[Encoding]) -> Tensor:
    """Return the mean last hidden state over the bodies' tokens, (batch, hidden), float32."""
    start = batch.tokens.shape[1] - hidden.shape[1]
    body = torch.zeros(batch.tokens.shape, dtype=torch.bool)
    for row, encoding in enumerate(encodings):
        for begin, end in encoding.bodies:
            body[row, begin:end] = True
    body = body[:, start:].to(hidden.device)
    total = torch.einsum("bp,bph->bh", body.float(), hidden.float())
    return total / body.sum(dim=1, keepdim=True)
