"""Compute cross-entropy behind a frozen linear head in chunks, never all logits at once.

    ℓ_t = −log softmax(W h_t + c)[y_t]        ∂ℓ_t/∂h_t = Wᵀ (softmax(W h_t + c) − 1_{y_t})

ℓ_t depends on row t alone, so a chunk of rows gives its losses AND the gradients by its rows while
its logits exist; then the logits are freed. The backward pass only scales those gradients. The
operations are those of the plain computation, and no logit is computed twice; memory holds
(targets, hidden) numbers instead of three tables of (targets, vocabulary).

References:
    P.-L. Hsu et al., Liger Kernel, 2024, section 3.2 (fused linear cross-entropy),
    https://arxiv.org/abs/2410.10989
    E. Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, ICLR 2025,
    https://arxiv.org/abs/2411.09009
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

Look = Callable[[Float[Tensor, "targets vocabulary"]], None]
"""Callback on the logits that predict a batch's targets, row by row of the batch, detached."""


def chunked_losses(
    hidden: Float[Tensor, "targets hidden"],
    head: nn.Linear,
    wanted: Int[Tensor, " targets"],
    *,
    rows: int,
    look: Look | None = None,
) -> Float[Tensor, " targets"]:
    """Return the loss of every target, nats, differentiable by ``hidden``.

    The losses are float32, or float64 where ``hidden`` is.

    Args:
        hidden: Inputs of the head, at the positions that predict a target.
        head: The head; it must not require a gradient.
        wanted: The target tokens.
        rows: Rows of a chunk, at least 1.
        look: Called with the logits of one chunk after the other.
    """
    found: Tensor = _Chunked.apply(hidden, head.weight, head.bias, wanted, rows, look)  # type: ignore[no-untyped-call]  # torch has no types here
    return found


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own form
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        wanted: Tensor,
        rows: int,
        look: Look | None,
    ) -> Tensor:
        losses, slopes = [], []
        for piece, targets in zip(hidden.split(rows), wanted.split(rows), strict=True):
            logits = linear(piece, weight, bias)
            if look is not None:
                look(logits)
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            losses.append(cross_entropy(wide, targets, reduction="none"))
            if ctx.needs_input_grad[0]:
                shares = wide.softmax(dim=-1)
                shares[torch.arange(len(targets), device=targets.device), targets] -= 1
                slopes.append((shares.to(logits.dtype) @ weight.to(logits.dtype)).to(hidden.dtype))
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's own form
        if not ctx.needs_input_grad[0]:
            return (None,) * 6
        (slopes,) = ctx.saved_tensors
        return (slopes * given[:, None].to(slopes.dtype), None, None, None, None, None)
