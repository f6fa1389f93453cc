"""Measure losses of the SAME body tokens under other prompts: an empty one, or PUBLIC ones.

    unconditional_i = ℓ(y_i | ∅)        contrast_ij = ℓ(y_i | q′_j),  q′_j ≠ q_i public, same domain

The prompt is all that stands before the first body that is learnt. The other prompts of a response
are drawn by a hash of the sample's id, so that they are the same in every run, order and process.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float32, Int32

from fedwinnow.client.measuring.batching import Places, run_in_batches
from fedwinnow.client.measuring.pass_options import PassOptions, PassProgress
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import DataError, ModelError
from fedwinnow.curation.model.lora_model import LoadedModel
from fedwinnow.curation.model.modes import evaluation_mode
from fedwinnow.curation.model.token_losses import Batch, sample_losses
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.curation.tokens.answer_spans import Span
from fedwinnow.curation.tokens.tokenization import Encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastPrompts:
    """PUBLIC prompts under which responses are measured again."""

    every: tuple[Sample, ...]
    by_domain: Mapping[str, tuple[Sample, ...]]
    tokens: Mapping[str, Int32[np.ndarray, " tokens"]]
    """Sample id → tokens of its prompt."""

    @classmethod
    def of(
        cls, loaded: LoadedModel, public: Sequence[Sample], options: PassOptions
    ) -> "ContrastPrompts":
        """Encode the prompts of public samples; leave out those that the chat template refuses."""
        found = zip(public, _prompts(loaded, public, options), strict=True)
        readable = [(sample, one) for sample, one in found if not one.refusal]
        domains = {sample.domain for sample, _ in readable}
        return cls(
            every=tuple(sample for sample, _ in readable),
            by_domain={d: tuple(s for s, _ in readable if s.domain == d) for d in domains},
            tokens={sample.id: one.tokens[: one.response_start] for sample, one in readable},
        )

    def others(self, sample: Sample, number: int) -> list[Sample]:
        """Draw samples of the same domain (of any, where it has none) with another prompt.

        Without repetition while there are enough.

        Raises:
            DataError: no public sample has another prompt.
        """
        near = self.by_domain.get(sample.domain, ())
        pool = [one for one in near if one.prompt != sample.prompt]
        pool = pool or [one for one in self.every if one.prompt != sample.prompt]
        if not pool:
            message = (
                "measuring.contrast_prompts: no public reference anchor has another prompt than "
                "the sample; give more anchors or set measuring.contrast_prompts = 0"
            )
            raise DataError(message)
        chosen = []
        for turn in range(number):
            place = derive_seed(turn, "contrast", sample.id) % len(pool)
            chosen.append(pool[place])
            pool = [*pool[:place], *pool[place + 1 :]] or pool
        return chosen


def unconditional_losses(
    loaded: LoadedModel, encodings: Sequence[Encoding], options: PassOptions, progress: PassProgress
) -> Float32[np.ndarray, " samples"]:
    """Return the mean body loss of each sample under an empty prompt, nats.

    Raises:
        ModelError: the chat template refuses an empty prompt.
    """
    empty = prompt_tokens(loaded, Sample(id="", prompt="", response=""), options)
    return _under_prompts(loaded, [(e, empty) for e in encodings], options, progress)


def contrastive_losses(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    encodings: Sequence[Encoding],
    prompts: ContrastPrompts,
    number: int,
    options: PassOptions,
    progress: PassProgress,
) -> Float32[np.ndarray, "samples prompts"]:
    """Return the mean body loss of each sample under ``number`` other prompts, nats.

    Raises:
        DataError: no public sample has another prompt.
    """
    pairs = [
        (encoding, prompts.tokens[other.id])
        for sample, encoding in zip(samples, encodings, strict=True)
        for other in prompts.others(sample, number)
    ]
    return _under_prompts(loaded, pairs, options, progress).reshape(len(samples), number)


def prompt_tokens(
    loaded: LoadedModel, sample: Sample, options: PassOptions
) -> Int32[np.ndarray, " tokens"]:
    """Return the tokens of a sample's prompt alone.

    Raises:
        ModelError: the chat template refuses it.
    """
    found = next(_prompts(loaded, [sample], options))
    if found.refusal:
        message = (
            f"model.name: the chat template refuses a prompt of {len(sample.prompt)} characters: "
            f"{found.refusal}; choose a scorer without unconditional_loss"
        )
        raise ModelError(message)
    return found.tokens[: found.response_start]


def _prompts(
    loaded: LoadedModel, samples: Sequence[Sample], options: PassOptions
) -> Iterator[Encoding]:
    """Encode each sample without its response."""
    alone = (
        replace(sample, response="", response_details="", train_on="last") for sample in samples
    )
    return options.encode(loaded, alone)


def _under_prompts(
    loaded: LoadedModel,
    pairs: Sequence[tuple[Encoding, np.ndarray]],
    options: PassOptions,
    progress: PassProgress,
) -> Float32[np.ndarray, " pairs"]:
    """Return the mean loss of the same body tokens under another prompt, in the pairs' order."""
    encodings = []
    for encoding, prompt in pairs:
        bodies = encoding.bodies
        rest = encoding.tokens[bodies[0][0] : encoding.body_end]
        kept = prompt[-max(1, options.max_length - len(rest)) :]
        off = len(kept) - bodies[0][0]
        encodings.append(
            Encoding(
                tokens=np.concatenate([kept, rest]).astype(np.int32),
                response_start=encoding.response_start + off,
                body_end=encoding.body_end + off,
                earlier=tuple(Span(b + off, e + off, e + off) for b, e in bodies[:-1]),
            )
        )
    values = np.full(len(pairs), np.nan, dtype=np.float32)

    def run(places: Places, batch: Batch) -> None:
        values[places] = sample_losses(loaded.model, batch).float().cpu().numpy()
        progress.add(len(places))

    with evaluation_mode(loaded.model), torch.no_grad():
        run_in_batches(loaded, encodings, run, batch_tokens=options.batch_tokens, kind="loss")
    return values
