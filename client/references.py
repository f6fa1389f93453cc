"""What samples are measured against: mean gradients, Adam's moments and representations of anchors.

For domain k with reference anchors a ∈ R_k at the loaded adapter:

    G_k = 1/|R_k| Σ_{a ∈ R_k} ∇ℓ_a        Gram_kl = ⟨G_k, G_l⟩        h_k: mean of body states

Adam's moments come from the same anchors one by one in order of id, m ← β₁ m + (1 − β₁) g and v
likewise, written as the weighted sums that this recursion is; they are public and equal everywhere.

Reference:
    M. Xia et al., LESS, ICML 2024, section 3, https://arxiv.org/abs/2402.04333 (which takes the
    moments of the training run; ours are public instead).
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedwinnow.client.hidden import last_hidden, mean_states
from fedwinnow.curation.columns import GRADIENTS
from fedwinnow.curation.contraction import BETAS, Contraction, Moments, WeightedSums
from fedwinnow.curation.encoding import Encoding
from fedwinnow.curation.errors import DataError, NonFiniteError
from fedwinnow.curation.gradients import evaluating, sample_gradients
from fedwinnow.curation.losses import collate, plan_batches, sample_losses
from fedwinnow.curation.modeling import LoadedModel, encode
from fedwinnow.curation.nouns import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """Public references at one checkpoint."""

    names: tuple[str, ...]
    """Domains, sorted."""
    means: Mapping[str, Tensor]
    """Factor → (domains, parameters of the factor), float32; empty without gradient columns."""
    gram: np.ndarray
    """(domains, domains), float64; empty without gradient columns."""
    moments: Moments | None
    states: Tensor | None
    """(domains, hidden), float32."""

    def contraction(self, *, plain: bool, adam: bool) -> Contraction:
        """A collector of dots and norms against these references."""
        return Contraction(
            references=self.means, moments=self.moments if adam else None, plain=plain
        )

    def similarity(self, states: Tensor) -> Tensor:
        """Cosine of each row with each domain's mean state, (rows, domains)."""
        if self.states is None:
            message = "representations of the references were not asked for"
            raise AssertionError(message)
        unit = torch.nn.functional.normalize
        return unit(states, dim=1) @ unit(self.states.to(states), dim=1).T


def reference_state(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    *,
    columns: frozenset[str],
    batch_tokens: int,
    max_length: int,
    system_prompt: str = "",
) -> References:
    """Compute the references that the columns need, at the loaded adapter.

    Raises:
        DataError: no reference anchor has a response token.
        ModelError: gradients are asked for and the adapter cannot be measured (B = 0, …).
        NonFiniteError: a reference holds a NaN or an infinity, so every sample's would.
    """
    ordered = sorted(samples, key=lambda sample: sample.id)
    encoded = [
        (sample, encode(loaded, sample, max_length=max_length, system_prompt=system_prompt))
        for sample in ordered
    ]
    pairs = [(sample, encoding) for sample, encoding in encoded if encoding.has_target]
    if not pairs:
        message = "anchors: no reference anchor has a response token; raise model.max_length"
        raise DataError(message)
    names = tuple(sorted({sample.domain for sample, _ in pairs}))
    domains = _indicator([sample.domain for sample, _ in pairs], names)
    wants_gradients, wants_states = bool(columns & GRADIENTS), "representation" in columns
    if not wants_gradients and not wants_states:
        return _references(names, _sums(domains), len(pairs), None)
    sums, states = _pass(
        loaded,
        [encoding for _, encoding in pairs],
        domains,
        batch_tokens=batch_tokens,
        gradients=wants_gradients,
        hidden=wants_states,
    )
    return _references(names, sums, len(pairs), states)


def _pass(
    loaded: LoadedModel,
    encodings: Sequence[Encoding],
    domains: Tensor,
    *,
    batch_tokens: int,
    gradients: bool,
    hidden: bool,
) -> tuple[WeightedSums, Tensor | None]:
    """Sums of gradients and mean states over all anchors, batch by batch."""
    sums, total = _sums(domains), None
    weights, squares = sums.weights, sums.square_weights
    with ExitStack() as stack:
        if gradients:
            firing = stack.enter_context(
                sample_gradients(loaded.model, dict(loaded.layers()), sums)
            )
        else:
            stack.enter_context(evaluating(loaded.model))
            stack.enter_context(torch.no_grad())
        seen = stack.enter_context(last_hidden(loaded)) if hidden else []
        lengths = np.array([len(encoding.tokens) for encoding in encodings], dtype=np.int64)
        for places in plan_batches(lengths, batch_tokens):
            chosen = [encodings[i] for i in places]
            batch = collate(chosen).to(loaded.device)
            losses = sample_losses(loaded.model, batch)
            index = torch.as_tensor(places)
            if hidden:
                states = mean_states(seen.pop(), batch, chosen)
                added = domains[:, index].to(states) @ states
                total = added if total is None else total + added
            if gradients:
                sums.weights = weights[:, index].to(loaded.device)
                sums.square_weights = squares[index].to(loaded.device)
                losses.sum().backward()
                firing.check()
    return sums, total


def _indicator(domains: Sequence[str], names: Sequence[str]) -> Tensor:
    """(domains, samples): 1/|R_k| where a sample is of domain k."""
    table = torch.tensor([[float(domain == name) for domain in domains] for name in names])
    return table / table.sum(dim=1, keepdim=True)


def _sums(domains: Tensor) -> WeightedSums:
    """Rows: the domains' means, then Adam's first moment; squares: the second moment."""
    (first, second), number = BETAS, domains.shape[1]
    age = torch.arange(number - 1, -1, -1, dtype=torch.float64)
    rows = torch.cat([domains, ((1 - first) * first**age).float()[None]])
    return WeightedSums(weights=rows, square_weights=((1 - second) * second**age).float())


def _references(
    names: tuple[str, ...], sums: WeightedSums, number: int, states: Tensor | None
) -> References:
    finite = [bool(rows.isfinite().all()) for rows in sums.sums.values()]
    if not all(finite) or (states is not None and not bool(states.isfinite().all())):
        message = (
            "references: the model gives a NaN or an infinity on a reference anchor; check the "
            "adapter and model.dtype (float16 overflows easily), or lower the learning rate"
        )
        raise NonFiniteError(message)
    k = len(names)
    means = {factor: rows[:k].contiguous() for factor, rows in sums.sums.items()}
    gram = np.zeros((k, k)) if means else np.zeros((0, 0))
    for rows in means.values():
        exact = rows.double()
        gram += (exact @ exact.T).cpu().numpy()
    moments = None
    if means:
        moments = Moments(
            first={factor: rows[k].contiguous() for factor, rows in sums.sums.items()},
            second=dict(sums.squares),
            count=number,
        )
    return References(names=names, means=means, gram=gram, moments=moments, states=states)
