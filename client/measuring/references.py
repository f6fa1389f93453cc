"""Compute public references of a checkpoint: mean gradients, Adam's moments, representations.

For domain k with reference anchors a ∈ R_k at the loaded adapter:

    G_k = 1/|R_k| Σ_{a ∈ R_k} ∇ℓ_a        Gram_kl = ⟨G_k, G_l⟩        h_k: mean of body states
    Γ(G_k): one Adam step on G_k          u_k of DataInf              c_k: h of corrupted anchors

Adam's moments come from the same anchors one by one in order of id, m ← β₁ m + (1 − β₁) g and v
likewise, computed as the equivalent weighted sums; they are public and the same at every site.

Reference:
    M. Xia et al., LESS, ICML 2024, section 3, https://arxiv.org/abs/2402.04333 (which takes the
    moments of the training run; ours are public instead).
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fedwinnow.client.measuring.batching import Places, run_in_batches
from fedwinnow.client.measuring.datainf import influence_directions
from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import DataError, NonFiniteError
from fedwinnow.curation.gradients.contraction import (
    BETAS,
    Contraction,
    Moments,
    WeightedSums,
    adam_direction,
)
from fedwinnow.curation.gradients.per_sample import Way, per_sample_gradients
from fedwinnow.curation.model.hidden_states import last_hidden, mean_states
from fedwinnow.curation.model.lora_model import LoadedModel
from fedwinnow.curation.model.modes import evaluation_mode
from fedwinnow.curation.model.token_losses import Batch, sample_losses
from fedwinnow.curation.signal_columns import ADAM, GRADIENTS, REPRESENTATIONS
from fedwinnow.curation.tokens.tokenization import Encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """Public references at one checkpoint."""

    names: tuple[str, ...]
    """Domains, sorted."""
    means: Mapping[str, Tensor]
    """Factor → (domains, parameters of the factor), float32; empty without gradient columns.

    Signals measured against these references count these factors and no others.
    """
    gram: np.ndarray
    """(domains, domains), float64; empty without gradient columns."""
    moments: Moments | None
    states: Tensor | None
    """(domains, hidden), float32."""
    corrupted: Tensor | None = None
    """The same for corrupted anchors."""
    adam: Mapping[str, Tensor] = field(default_factory=dict)
    """Γ(G_k) by factor; empty where no column needs it."""
    directions: Mapping[str, Tensor] = field(default_factory=dict)
    """DataInf's u_k by factor; empty where no column needs it."""

    def contraction(self, columns: Collection[str]) -> Contraction:
        """Return a collector of what the columns need."""
        return Contraction(
            references=self.means,
            moments=self.moments if ADAM & set(columns) else None,
            plain=bool({"dot", "norm"} & set(columns)),
            adam_references=self.adam,
            directions=self.directions,
        )

    def similarity(self, states: Tensor) -> dict[str, Tensor]:
        """Return column → cosine of each row with each domain's mean state, (rows, domains)."""
        unit = torch.nn.functional.normalize
        means = {"representation": self.states, "representation_corrupted": self.corrupted}
        return {
            name: unit(states, dim=1) @ unit(mean.to(states), dim=1).T
            for name, mean in means.items()
            if mean is not None
        }


def reference_state(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    options: PassOptions,
    *,
    columns: frozenset[str],
    corrupted: Sequence[Sample] = (),
    way: Way = "hooks",
    layers: int = 0,
) -> References:
    """Compute the references that the columns need, at the loaded adapter.

    Args:
        loaded: Model with the adapter of the checkpoint.
        samples: The reference anchors.
        options: How anchors are read and batched.
        columns: Names of the wanted columns.
        corrupted: Corruptions of the reference anchors; needed for ``representation_corrupted``.
        way: How the anchors' gradients are taken.
        layers: Last transformer layers whose factors have references, and so count in every row
            that is measured against them; 0 for all.

    Raises:
        DataError: no reference anchor has a response token.
        ModelError: gradients are asked for and the adapter cannot be measured (B = 0, …), or the
            model has fewer transformer layers.
        NonFiniteError: a reference holds a NaN or an infinity, so every sample's would.
    """
    pairs = _readable(loaded, samples, options)
    if not pairs:
        message = "anchors: no reference anchor has a response token; raise model.max_length"
        raise DataError(message)
    names = tuple(sorted({sample.domain for sample, _ in pairs}))
    encodings, domains = [one for _, one in pairs], _indicator(pairs, names)
    wants_gradients, wants_states = bool(columns & GRADIENTS), bool(columns & REPRESENTATIONS)
    sums, states, spoiled = _sums(domains), None, None
    if wants_gradients or wants_states:
        sums, states = _pass(
            loaded, encodings, domains,
            batch_tokens=options.batch_tokens, way=way if wants_gradients else None,
            hidden=wants_states, layers=loaded.last_layers(layers) if wants_gradients else {},
        )  # fmt: skip
    if "representation_corrupted" in columns:
        spoiled = _corrupted_states(loaded, corrupted, names, options)
    found = _references(names, sums, len(pairs), states)
    adam, directions = {}, {}
    if "adam_adam_dot" in columns and found.moments is not None:
        moments = found.moments
        adam = {
            name: adam_direction(mean, moments.first[name], moments.second[name], moments.count)
            for name, mean in found.means.items()
        }
    if "influence" in columns:
        directions = influence_directions(
            loaded, encodings, found.means, batch_tokens=options.batch_tokens, way=way
        )
    return replace(found, corrupted=spoiled, adam=adam, directions=directions)


def _readable(
    loaded: LoadedModel, samples: Sequence[Sample], options: PassOptions
) -> list[tuple[Sample, Encoding]]:
    """Return samples in order of id, with their tokens; leave out those without a target."""
    ordered = sorted(samples, key=lambda sample: sample.id)
    encodings = options.encode(loaded, ordered)
    return [pair for pair in zip(ordered, encodings, strict=True) if pair[1].has_target]


def _corrupted_states(
    loaded: LoadedModel, corrupted: Sequence[Sample], names: tuple[str, ...], options: PassOptions
) -> Tensor:
    """Return the mean states of corrupted anchors by domain.

    Raises:
        DataError: a domain has none.
    """
    pairs = _readable(loaded, corrupted, options)
    lacking = set(names) - {sample.domain for sample, _ in pairs}
    if lacking:
        message = (
            f"anchors: domain {min(lacking)!r} has no corrupted reference anchor, which scorer "
            "'representation' contrasts with; raise anchors.copies or the number of anchors"
        )
        raise DataError(message)
    _, states = _pass(
        loaded, [one for _, one in pairs], _indicator(pairs, names),
        batch_tokens=options.batch_tokens, way=None, hidden=True, layers={},
    )  # fmt: skip
    if states is None or not bool(states.isfinite().all()):
        message = "references: the model gives a NaN or an infinity on a corrupted anchor"
        raise NonFiniteError(message)
    return states


def _pass(
    loaded: LoadedModel,
    encodings: Sequence[Encoding],
    domains: Tensor,
    *,
    batch_tokens: int,
    way: Way | None,
    hidden: bool,
    layers: Mapping[str, Any],
) -> tuple[WeightedSums, Tensor | None]:
    """Sum gradients and mean states over all anchors, batch by batch."""
    sums, total = _sums(domains), cast("Tensor | None", None)
    weights, squares = sums.weights, sums.square_weights
    with ExitStack() as stack:
        source = None
        if way is not None:
            source = stack.enter_context(per_sample_gradients(way, loaded, layers, sums))
        else:
            stack.enter_context(evaluation_mode(loaded.model))
            stack.enter_context(torch.no_grad())
        seen = stack.enter_context(last_hidden(loaded)) if hidden else []

        def run(places: Places, batch: Batch) -> None:
            nonlocal total
            chosen = [encodings[i] for i in places]
            if source is not None:
                source.begin(len(places))
            losses = sample_losses(loaded.model, batch)
            index = torch.as_tensor(places)
            if hidden:
                states = mean_states(seen.pop(), batch, chosen)
                added = domains[:, index].to(states) @ states
                total = added if total is None else total + added
            if source is not None:
                sums.weights = weights[:, index].to(loaded.device)
                sums.square_weights = squares[index].to(loaded.device)
                source.backward(losses)

        def forget() -> None:
            nonlocal total
            total = None
            seen.clear()
            sums.forget()
            if source is not None:
                source.drop()

        run_in_batches(
            loaded, encodings, run, forget=forget, adds_up=True,
            batch_tokens=batch_tokens, kind=way or "loss", graph=way is not None,
        )  # fmt: skip
    return sums, total


def _indicator(pairs: Sequence[tuple[Sample, Encoding]], names: Sequence[str]) -> Tensor:
    """Return (domains, samples): 1/|R_k| where a sample is of domain k."""
    table = torch.tensor([[float(one.domain == name) for one, _ in pairs] for name in names])
    return table / table.sum(dim=1, keepdim=True)


def _sums(domains: Tensor) -> WeightedSums:
    """Set up sums: rows are the domains' means, then Adam's first moment; squares the second."""
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
