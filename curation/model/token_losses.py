"""Compute each response's mean token loss in a batch, from logits at its positions only.

ℓ_i = (1 / T_i) Σ_t −log p(y_t | x, y_<t) in nats, over body and end-of-turn token of sample i.
The loss that a model computes from labels is never used: it is a mean over all tokens of a batch,
so a sample's share would depend on its neighbours.

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
from fedwinnow.curation.tokens.tokenization import Encoding

logger = logging.getLogger(__name__)

WHOLE = 2**29
"""Most logits of a batch computed at once (2 GiB in float32); more are made in eighths of it."""
_CHUNK = 2**22
"""Logits whose entropy is computed at once: 16 MiB in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch of encoded samples, padded on the right."""

    tokens: Int[Tensor, "batch length"]
    mask: Int[Tensor, "batch length"]
    """1 at tokens, 0 at padding."""
    targets: Bool[Tensor, "batch length"]
    """Whether the token at a position counts in the loss; never at 0, which nothing predicts."""
    first: int
    """First position in the batch whose token counts, at least 1."""

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device; the host does not wait for the copy of a pinned batch."""
        ahead = device.type == "cuda"
        return Batch(
            tokens=self.tokens.to(device, non_blocking=ahead),
            mask=self.mask.to(device, non_blocking=ahead),
            targets=self.targets.to(device, non_blocking=ahead),
            first=self.first,
        )

    def pinned(self) -> "Batch":
        """Copy the batch to page-locked memory of the host; needs CUDA."""
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
        for begin, end in encoding.targets:
            targets[row, begin:end] = True
    first = int(targets.any(dim=0).int().argmax())
    return Batch(tokens=tokens, mask=mask, targets=targets, first=first)


def token_losses(
    model: torch.nn.Module, batch: Batch, *, look: Look | None = None, whole: int = WHOLE
) -> Float[Tensor, "batch places"]:
    """Return every token's loss from position ``batch.first`` on, nats, 0 where it does not count.

    The vocabulary-sized head runs only on the hidden states that predict a target: the rest of
    prompt and padding costs the head neither time nor memory. Where even those give more than
    ``whole`` logits, they are computed in chunks (``curation/model/chunked_cross_entropy.py``).

    Args:
        model: A causal language model of transformers, PEFT's wrapper included.
        batch: On the model's device; every sample has a target.
        look: Called with the logits before they are freed, maybe in chunks; see :func:`entropies`.
        whole: Most logits computed at once, at least 8.

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
    """Compute the targets' losses from one table of logits."""
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
    """Compute the targets' losses from at most ``most`` logits at a time.

    Returns None where the model changes the head's output (softcapping, scaling); one row through
    the whole model shows it.
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
    """Return whether the head can run outside the model: its weights whole, plain and frozen."""
    weights = [head.weight] if head.bias is None else [head.weight, head.bias]
    return type(head) is torch.nn.Linear and not any(
        weight.requires_grad or hasattr(weight, "to_local") for weight in weights
    )


def entropies(logits: Float[Tensor, "targets vocabulary"]) -> Float[Tensor, " targets"]:
    """Return each row's −Σ_v p_v log p_v / log V, p = softmax, in float32.

    0 is certain, 1 knows nothing. The rows are taken in chunks, so that no second table of the
    logits' size is ever made.
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
    """Return the language-model head if it is one linear layer without an adapter, else None.

    A compiled model gives None too: it would ignore the hook or keep that of its first batch.
    """
    if is_compiled(model):
        return None
    ask = getattr(model, "get_output_embeddings", None)
    head = None if ask is None else ask()
    return head if isinstance(head, torch.nn.Linear) and not hasattr(head, "lora_A") else None


def sample_losses(model: torch.nn.Module, batch: Batch) -> Float[Tensor, " batch"]:
    """Return every sample's mean token loss, nats, differentiable; see :func:`token_losses`."""
    return token_losses(model, batch).sum(dim=1) / batch.targets[:, batch.first :].sum(dim=1)
