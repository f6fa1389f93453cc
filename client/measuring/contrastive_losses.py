"""Measure losses of the SAME body tokens under other prompts: an empty one, or PUBLIC ones.

    unconditional_i = ℓ(y_i | ∅)        contrast_ij = ℓ(y_i | q′_j),  q′_j ≠ q_i public, same domain

The other prompts of a response are drawn by a hash of the sample's id, so that they are the same in
every run, order and process.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float32, Int32

from fedwinnow.client.measuring.batching import Places, run_in_batches
from fedwinnow.client.measuring.pass_options import PassOptions, PassProgress
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import DataError
from fedwinnow.curation.model.lora_model import LoadedModel
from fedwinnow.curation.model.modes import evaluation_mode
from fedwinnow.curation.model.token_losses import Batch, sample_losses
from fedwinnow.curation.model.tokenization import Encoding
from fedwinnow.curation.seeds import derive_seed


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
        """Encode the prompts of public samples."""
        domains = {sample.domain for sample in public}
        return cls(
            every=tuple(public),
            by_domain={d: tuple(s for s in public if s.domain == d) for d in domains},
            tokens=dict(
                zip(
                    (sample.id for sample in public), _prompts(loaded, public, options), strict=True
                )
            ),
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
    """Return the mean body loss of each sample under an empty prompt, nats."""
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
    """Return the tokens of a sample's prompt alone."""
    return next(_prompts(loaded, [sample], options))


def _prompts(
    loaded: LoadedModel, samples: Sequence[Sample], options: PassOptions
) -> Iterator[Int32[np.ndarray, " tokens"]]:
    """Return the tokens of each sample's prompt alone."""
    alone = (replace(sample, response="") for sample in samples)
    found = options.encode(loaded, alone)
    return (encoding.tokens[: encoding.response_start] for encoding in found)


def _under_prompts(
    loaded: LoadedModel,
    pairs: Sequence[tuple[Encoding, np.ndarray]],
    options: PassOptions,
    progress: PassProgress,
) -> Float32[np.ndarray, " pairs"]:
    """Return the mean loss of the same body tokens under another prompt, in the pairs' order."""
    encodings = []
    for encoding, prompt in pairs:
        body = encoding.tokens[encoding.response_start : encoding.body_end]
        kept = prompt[-max(1, options.max_length - len(body)) :]
        tokens = np.concatenate([kept, body]).astype(np.int32)
        encodings.append(Encoding(tokens=tokens, response_start=len(kept), body_end=len(tokens)))
    values = np.full(len(pairs), np.nan, dtype=np.float32)

    def run(places: Places, batch: Batch) -> None:
        values[places] = sample_losses(loaded.model, batch).float().cpu().numpy()
        progress.add(len(places))

    with evaluation_mode(loaded.model), torch.no_grad():
        run_in_batches(loaded, encodings, run, batch_tokens=options.batch_tokens, kind="loss")
    return values
