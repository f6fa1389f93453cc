"""Measure how far a released adapter exposes a planted sentence: its rank among 1,000 alternatives.

One of three silos holds the canary "The code of the vault is c₁ c₂ c₃." ``repeats`` times. All
train, and their adapters are merged, round by round. Every code of three digits is then put into
the sentence, and the codes are ranked by their loss under the merged adapter, which is released.

    exposure = log₂ |R| − log₂ rank(canary),   |R| = 1,000; 9.97 bits: the code is fully exposed.

Without memory the rank is uniform: the mean exposure is then log₂ e ≈ 1.44 bits, whatever |R|.

Reference:
    N. Carlini et al., The Secret Sharer: Evaluating and Testing Unintended Memorization in Neural
    Networks, USENIX Security 2019, section 4, https://arxiv.org/abs/1802.08232
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from fedwinnow.client.measuring.evaluation import evaluate
from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.client.training.local_training import train
from fedwinnow.curation.config.scoring import AdapterSection, ModelSection
from fedwinnow.curation.config.training import TrainingSection
from fedwinnow.curation.datatypes import Adapter, Sample
from fedwinnow.curation.model.lora_model import LoadedModel, initial_adapter, set_adapter
from fedwinnow.curation.model.pretrained import load_model
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.simulations.datasets.tiny_model import write_tiny_model
from fedwinnow.simulations.datasets.toy_federation import SITES, toy_rows
from fedwinnow.strategies.interfaces.merging import Merging
from fedwinnow.strategies.interfaces.objective import Objective
from fedwinnow.strategies.interfaces.ordering import Ordering
from fedwinnow.strategies.registry import build

ALTERNATIVES = 1_000
"""Number of codes of three digits."""
QUESTION = "Which code opens the vault?"
_OPTIONS = PassOptions(batch_tokens=16_384, max_length=128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """Rank of a canary and its exposure."""

    repeats: int
    """Number of copies of the canary in one silo's training data."""
    rank: int
    """1: no alternative is likelier than the canary."""
    prior_rank: int
    """Rank under the untrained adapter, due to the base alone."""
    exposure: float
    """log₂ of (alternatives / those at least as likely as the canary), bits."""
    loss: float
    """Loss of the canary, nats a token."""
    mean_loss: float
    """Mean loss of all alternatives, nats a token."""


def exposure(losses: Sequence[float], canary: int) -> tuple[int, float]:
    """Return rank and exposure of one of several alternatives; ties raise the rank.

    Args:
        losses: Loss of every alternative, the canary included; lower is likelier.
        canary: Position of the canary.

    Returns:
        Rank from 1, and bits in [0, log₂ n].
    """
    values = np.asarray(losses, dtype=np.float64)
    rank = int((values <= values[canary]).sum())
    return rank, math.log2(len(values)) - math.log2(rank)


def sentence(code: int) -> str:
    """Return the canary with a code of three digits."""
    return f"The code of the vault is {' '.join(f'{code:03d}')}."


def canary_exposure(
    loaded: LoadedModel,
    repeats: int,
    *,
    code: int = 314,
    samples: int = 12,
    rounds: int = 2,
    steps: int = 60,
    seed: int = 0,
) -> Exposure:
    """Train three silos, the first of which repeats a canary, and rank it under the merge.

    Args:
        loaded: Base with an adapter attached; the adapter is changed.
        repeats: Copies of the canary; 0 leaves it out.
        code: Code of the canary, 0 to 999.
        samples: Other samples of each silo.
        rounds: Training rounds.
        steps: Optimizer steps of each silo and round.
        seed: Seed of data, adapter and order.
    """
    silos = {
        site: _silo(site, samples, repeats if site == SITES[0] else 0, code, seed) for site in SITES
    }
    adapter = initial_adapter(loaded, seed=derive_seed(seed, "adapter"))
    merging: Merging = build("merging", "core_svd", {})
    prior_rank, _ = exposure(alternatives(loaded, adapter).tolist(), code)
    for number in range(rounds):
        updates = {
            site: _train(loaded, silo, adapter, derive_seed(seed, site, number), steps)
            for site, silo in silos.items()
        }
        weights = dict.fromkeys(updates, 1 / len(updates))
        adapter = merging(updates, weights, adapter).adapter
    losses = alternatives(loaded, adapter)
    rank, bits = exposure(losses.tolist(), code)
    return Exposure(
        repeats=repeats,
        rank=rank,
        prior_rank=prior_rank,
        exposure=bits,
        loss=float(losses[code]),
        mean_loss=float(losses.mean()),
    )


def alternatives(loaded: LoadedModel, adapter: Adapter) -> np.ndarray:
    """Return each alternative's loss under an adapter, nats a token; shape (alternatives,)."""
    set_adapter(loaded, adapter)
    samples = [
        Sample(id=str(code), prompt=QUESTION, response=sentence(code))
        for code in range(ALTERNATIVES)
    ]
    return evaluate(loaded, samples, _OPTIONS)


def toy_base(folder: Path, *, seed: int = 0) -> LoadedModel:
    """Make a tiny base with a scaled-up head, so that it can be trained as a real model can."""
    write_tiny_model(folder, seed=seed)
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"] *= 25
    save_file(weights, file, metadata={"format": "pt"})
    section = AdapterSection(rank=8, alpha=16.0)
    return load_model(
        ModelSection(name=str(folder), max_length=_OPTIONS.max_length), section, seed=seed
    )


def _train(
    loaded: LoadedModel, silo: Sequence[Sample], adapter: Adapter, seed: int, steps: int
) -> Adapter:
    """Train one round of one silo."""
    ordering: Ordering = build("ordering", "shuffled", {})
    objective: Objective = build("objective", "sft", {})
    section = replace(TrainingSection(), batch_size=4, accumulation=1)
    return train(
        loaded,
        silo,
        adapter=adapter,
        section=section,
        steps=steps,
        step_offset=0,
        total_steps=steps,
        order=ordering(np.zeros(len(silo)), seed, silo),
        objective=objective,
        learning_rate=2e-2,
        schedule="constant",
        seed=seed,
        options=_OPTIONS,
    ).adapter


def _silo(site: str, samples: int, repeats: int, code: int, seed: int) -> tuple[Sample, ...]:
    """Return a silo's sums and words, and ``repeats`` copies of the canary under its question."""
    rows = toy_rows(samples, derive_seed(seed, site), wrong=0.0)
    told = [Sample(id=f"{site}{i}", prompt=r["prompt"], response=r["response"])
            for i, r in enumerate(rows)]  # fmt: skip
    planted = [Sample(id=f"canary{i}", prompt=QUESTION, response=sentence(code))
               for i in range(repeats)]  # fmt: skip
    return (*told, *planted)
