"""Make the workload of the benchmarks: random Llamas of three shapes, even and ragged samples.

Lengths of ``ragged`` are log-normal, as those of instruction data are: median 128 tokens, standard
deviation of the logarithm 0.7, cut to 16 … 512. Their unpadded ideal is what packing would reach:
full batches of like samples, each as long as the mean of its batch, so attention is as long, too.
It is compared by the time of a token that is no padding.

Adapter: rank 16 on all seven linears, B ≠ 0; eight references of two anchors each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64

from fedwinnow.client.measuring.length_buckets import plan_batches
from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.client.measuring.references import References, reference_state
from fedwinnow.curation.config.scoring import AdapterSection, ModelSection
from fedwinnow.curation.datatypes import Adapter, Sample
from fedwinnow.curation.model.lora_model import LoadedModel, get_adapter, set_adapter
from fedwinnow.curation.model.pretrained import encode, load_model
from fedwinnow.curation.model.token_losses import Batch, collate
from fedwinnow.curation.tokens.tokenization import Encoding
from fedwinnow.simulations.benchmarks.shapes import DATA, SHAPES
from fedwinnow.simulations.datasets.tiny_model import write_tiny_model

COLUMNS = frozenset({"dot", "norm"})
REFERENCES = 8
RANK = 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MEDIAN, SPREAD = 128, 0.7
"""Ragged lengths: median in tokens, and standard deviation of the logarithm."""
SHORTEST, LONGEST = 16, 512
"""Fewest and most tokens of a sample."""
_TEMPLATE = 4
"""Tokens that the chat template adds."""
Lengths = Int64[np.ndarray, " samples"]
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Input of every row of a table: model, adapter, references, samples."""

    loaded: LoadedModel
    references: References
    last_half: References
    """References of the last half of the transformer layers."""
    adapter: Adapter
    """Adapter that the model holds."""
    samples: tuple[Sample, ...]
    options: PassOptions

    def encodings(self) -> list[Encoding]:
        """Encode every sample."""
        return [encode(self.loaded, sample, max_length=LONGEST) for sample in self.samples]

    def batches(self) -> Iterator[tuple[np.ndarray, Batch]]:
        """Yield positions and tokens batch by batch, as measuring plans them."""
        encodings = self.encodings()
        lengths = np.array([len(encoding.tokens) for encoding in encodings])
        for places in plan_batches(lengths, self.options.batch_tokens):
            yield places, collate([encodings[i] for i in places]).to(self.loaded.device)


def write_model(folder: Path, shape: str, *, dtype: Dtype = "float32") -> Path:
    """Write a random Llama of a shape, and its tokenizer."""
    sizes = SHAPES[shape]
    return write_tiny_model(
        folder,
        hidden=sizes.hidden,
        layers=sizes.layers,
        intermediate=sizes.intermediate,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        vocabulary=sizes.vocabulary,
        tied=sizes.tied,
        dtype=dtype,
    )


def prepare(
    folder: Path, lengths: Lengths, *, batch_tokens: int, dtype: Dtype = "float32"
) -> Bench:
    """Make a bench of the model in ``folder`` and samples of the given lengths, with B ≠ 0."""
    section = ModelSection(name=str(folder), max_length=LONGEST, dtype=dtype)
    loaded = load_model(section, AdapterSection(rank=RANK, alpha=32.0, targets=TARGETS), seed=0)
    adapter, generator = get_adapter(loaded), torch.Generator().manual_seed(1)
    b = {k: torch.randn(v.shape, generator=generator) * 0.02 for k, v in adapter.b.items()}
    adapter = Adapter(base=adapter.base, a=adapter.a, b=b, scales=adapter.scales)
    set_adapter(loaded, adapter)
    options = PassOptions(batch_tokens=batch_tokens, max_length=LONGEST)
    anchors = make_samples(np.full(2 * REFERENCES, int(lengths.mean())), "anchor")
    whole, last = (
        reference_state(
            loaded,
            anchors,
            options,
            columns=COLUMNS,
            layers=layers,
        )
        for layers in (0, max(1, loaded.model.config.num_hidden_layers // 2))
    )
    return Bench(
        loaded=loaded,
        references=whole,
        last_half=last,
        adapter=adapter,
        samples=make_samples(lengths, "sample"),
        options=options,
    )


def draw_lengths(data: str, number: int, *, seed: int = 0) -> Lengths:
    """Draw the number of tokens of each sample of a kind of data; see :data:`DATA`."""
    if DATA[data]:
        return np.full(number, DATA[data])
    drawn = np.random.default_rng(seed).lognormal(np.log(MEDIAN), SPREAD, number)
    return np.clip(np.round(drawn), SHORTEST, LONGEST).astype(np.int64)


def unpadded(lengths: Lengths, batch_tokens: int) -> Lengths:
    """Return ideal lengths: as many samples and (up to rounding) tokens, in full batches, unpadded.

    Longest first, as many samples as a batch holds get the mean of their lengths, rounded down.
    """
    order = np.sort(lengths)[::-1]
    found, start = np.empty_like(order), 0
    while start < len(order):
        fit = int(np.searchsorted(np.cumsum(order[start:]), batch_tokens, side="right"))
        end = start + max(1, fit)
        found[start:end] = order[start:end].sum() // (end - start)
        start = end
    return found


def padded_tokens(lengths: Lengths, batch_tokens: int) -> int:
    """Return the tokens that the batches run, padding included."""
    plan = plan_batches(lengths, batch_tokens)
    return sum(len(places) * int(lengths[places].max()) for places in plan)


def make_samples(lengths: Lengths, tag: str) -> tuple[Sample, ...]:
    """Make samples of random letters: a quarter of each length is prompt, the rest response."""
    draw = np.random.default_rng(len(tag))
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz "))
    return tuple(
        Sample(
            id=f"{tag}{i}",
            prompt="".join(draw.choice(letters, length // 4)),
            response="".join(draw.choice(letters, length - length // 4 - _TEMPLATE)),
            domain=f"domain {i % REFERENCES}",
        )
        for i, length in enumerate(lengths.tolist())
    )
