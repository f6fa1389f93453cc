"""Mean token loss of each response in a batch, from logits at the response's positions only.

ℓ_i = (1 / T_i) Σ_t −log p(y_t | x, y_<t) in nats, over body and end-of-turn token of sample i.
Never the loss that a model computes from labels: that is a mean over all tokens of a batch, so a
sample's share would depend on its neighbours.

Reference:
    Padding on the right changes nothing under causal attention: A. Vaswani et al., Attention Is All
    You Need, NeurIPS 2017, section 3.2.3, https://arxiv.org/abs/1706.03762
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedwinnow.curation.model.chunked_cross_entropy import Look, chunked_losses
from fedwinnow.curation.model.hook_support import is_compiled
from fedwinnow.curation.model.tokenization import Encoding

logger = logging.getLogger(__name__)

WHOLE = 2**29
"""Logits of a batch up to which they are made at once (2 GiB in float32), else in eighths of it."""
_CHUNK = 2**22
"""Numbers of a piece of logits whose entropy is taken at once: 16 MiB in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples side by side, padded on the right."""

    tokens: Int[Tensor, "batch length"]
    mask: Int[Tensor, "batch length"]
    """1 where a token is, 0 where padding is."""
    targets: Bool[Tensor, "batch length"]
    """Whether the token at a place counts in the loss; never at place 0, which nothing predicts."""
    first: int
    """First place of the batch whose token counts, at least 1."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; the host does not wait for the copy where it is pinned."""
        ahead = device.type == "cuda"
        return Batch(
            tokens=self.tokens.to(device, non_blocking=ahead),
            mask=self.mask.to(device, non_blocking=ahead),
            targets=self.targets.to(device, non_blocking=ahead),
            first=self.first,
        )

    def pinned(self) -> "Batch":
        """The same batch in page-locked memory of the host; needs CUDA."""
        return Batch(
            tokens=self.tokens.pin_memory(),
            mask=self.mask.pin_memory(),
            targets=self.targets.pin_memory(),
            first=self.first,
        )


def collate(encodings: Sequence[Encoding]) -> Batch:
    """Pad at least one encoding, each with a target, into a batch on the CPU."""
    length = max(len(encoding.tokens) for encoding in encodings)
    tokens = torch.zeros(len(encodings), length, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    targets = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, encoding in enumerate(encodings):
        size = len(encoding.tokens)
        tokens[row, :size] = torch.as_tensor(np.asarray(encoding.tokens), dtype=torch.int64)
        mask[row, :size] = 1
        targets[row, max(encoding.response_start, 1) : size] = True
    first = int(targets.any(dim=0).int().argmax())
    return Batch(tokens=tokens, mask=mask, targets=targets, first=first)


def token_losses(
    model: torch.nn.Module, batch: Batch, *, look: Look | None = None, whole: int = WHOLE
) -> Float[Tensor, "batch places"]:
    """Loss of every token from place ``batch.first`` on, nats, 0 where none counts.

    The vocabulary-sized head runs on the hidden states that predict a target and on no other: the
    rest of prompt and padding costs neither its time nor its memory. Where even those give more
    than ``whole`` logits, they are made piece by piece
    (``curation/model/chunked_cross_entropy.py``).

    Args:
        model: A causal language model of transformers, PEFT's wrapper included.
        batch: On the model's device; every sample has a target.
        look: Shown the logits before they are let go, maybe in pieces; see :func:`entropies`.
        whole: Most logits that are made at once, at least 8.

    Returns:
        Float32, or float64 where the model is.
    """
    targets = batch.targets[:, batch.first :]
    wanted = batch.tokens[:, batch.first :][targets]
    head = _plain_head(model)
    losses = None
    if head is not None and _divisible(head) and len(wanted) * head.out_features > whole:
        losses = _in_pieces(model, batch, targets, head, look, whole // 8)
    if losses is None:
        losses = _at_once(model, batch, targets, head, look)
    table = torch.zeros(targets.shape, dtype=losses.dtype, device=losses.device)
    return table.masked_scatter(targets, losses)


def _at_once(
    model: torch.nn.Module,
    batch: Batch,
    targets: Tensor,
    head: torch.nn.Linear | None,
    look: Look | None,
) -> Tensor:
    """Losses of the targets from one table of logits."""
    kept = targets.shape[1] + 1
    gathered: list[bool] = []

    def gather(_module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        gathered.append(True)
        return (inputs[0][:, -kept:-1][targets][None], *inputs[1:])

    output = _run(model, batch, kept, head, gather)
    # places first − 1 … length − 2 predict the targets
    logits = output.logits[0] if gathered else output.logits[:, -kept:-1][targets]
    if look is not None:
        look(logits.detach())
    return torch.nn.functional.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)),
        batch.tokens[:, batch.first :][targets],
        reduction="none",
    )


def _in_pieces(
    model: torch.nn.Module,
    batch: Batch,
    targets: Tensor,
    head: torch.nn.Linear,
    look: Look | None,
    most: int,
) -> Tensor | None:
    """Losses of the targets, at most so many logits at a time.

    None where the model does something else with the head's output than to return it (softcapping,
    scaling), which one row through the whole model tells.
    """
    kept = targets.shape[1] + 1
    taken: list[Tensor] = []

    def take(_module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        taken.append(inputs[0][:, -kept:-1][targets])
        return (taken[0][None, :1], *inputs[1:])

    output = _run(model, batch, kept, head, take)
    with torch.no_grad():
        plain = torch.nn.functional.linear(taken[0][None, :1], head.weight, head.bias)
    if not torch.equal(plain, output.logits.detach()):
        logger.warning(
            "%s changes the logits behind its head, so the losses of %d targets take all their "
            "logits at once; lower measuring.batch_tokens or training.batch_size to save memory",
            type(model).__name__, len(taken[0]),
        )  # fmt: skip
        return None
    wanted = batch.tokens[:, batch.first :][targets]
    rows = max(1, most // head.out_features)
    return chunked_losses(taken[0], head, wanted, rows=rows, look=look)


def _run(
    model: torch.nn.Module,
    batch: Batch,
    kept: int,
    head: torch.nn.Linear | None,
    before: Callable[..., tuple[Tensor, ...]],
) -> Any:  # noqa: ANN401 - transformers' output
    handle = None if head is None else head.register_forward_pre_hook(before)
    try:
        return model(
            input_ids=batch.tokens,
            attention_mask=batch.mask,
            use_cache=False,
            logits_to_keep=kept,
        )
    finally:
        if handle is not None:
            handle.remove()


def _divisible(head: torch.nn.Linear) -> bool:
    """Whether the head's weights can be used beside the model: whole, plain and frozen."""
    weights = [head.weight] if head.bias is None else [head.weight, head.bias]
    return type(head) is torch.nn.Linear and not any(
        weight.requires_grad or hasattr(weight, "to_local") for weight in weights
    )


def entropies(logits: Float[Tensor, "targets vocabulary"]) -> Float[Tensor, " targets"]:
    """−Σ_v p_v log p_v / log V of each row, p = softmax: 0 is certain, 1 knows nothing; float32.

    Piece by piece, so that no second table of the logits' size is ever made.
    """
    rows, vocabulary = logits.shape
    each = max(1, _CHUNK // vocabulary)
    pieces = [
        torch.special.entr(piece.float().softmax(dim=-1)).sum(dim=-1)
        for piece in logits.split(each)
    ]
    most = math.log(max(vocabulary, 2))
    found = torch.cat(pieces) if rows else logits.new_zeros(0, dtype=torch.float32)
    return (found / most).clamp(0.0, 1.0)  # rounding may step over a bound; NaN stays NaN


def _plain_head(model: torch.nn.Module) -> torch.nn.Linear | None:
    """The language-model head, where it is one linear layer that has no adapter of its own.

    None for a compiled model too, which would ignore the hook or keep that of its first batch.
    """
    if is_compiled(model):
        return None
    ask = getattr(model, "get_output_embeddings", None)
    head = None if ask is None else ask()
    return head if isinstance(head, torch.nn.Linear) and not hasattr(head, "lora_A") else None


def sample_losses(model: torch.nn.Module, batch: Batch) -> Float[Tensor, " batch"]:
    """Mean token loss of every sample, nats, differentiable; see :func:`token_losses`."""
    return token_losses(model, batch).sum(dim=1) / batch.targets[:, batch.first :].sum(dim=1)
