"""A tiny model as after warm-up, samples, and signals measured with it."""

import numpy as np
import torch

from fedwinnow.client.measuring.measuring_pass import measure
from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.client.measuring.references import reference_state
from fedwinnow.curation.datatypes import Adapter, Sample
from fedwinnow.curation.model.lora_model import get_adapter, set_adapter

OPTIONS = PassOptions(batch_tokens=300, max_length=96)


def warmed(loaded):
    """The model with B ≠ 0; its adapter."""
    adapter = get_adapter(loaded)
    generator = torch.Generator().manual_seed(1)
    b = {k: torch.randn(v.shape, generator=generator) * 0.1 for k, v in adapter.b.items()}
    made = Adapter(base=adapter.base, a=adapter.a, b=b, scales=adapter.scales)
    set_adapter(loaded, made)
    return made


def some(number, tag):
    """Ragged samples of two domains."""
    return [
        Sample(
            id=f"{tag}{i}",
            prompt=f"{tag} asks {i} " + "why " * (i % 4),
            response="because " + "so " * (i % 5) + str(i * 7),
            domain="xy"[i % 2],
        )
        for i in range(number)
    ]


def references_of(loaded, columns, way="hooks"):
    """References for the columns, from six anchors and themselves as their corruptions."""
    anchors = some(6, "r")
    return reference_state(loaded, anchors, OPTIONS, columns=columns, corrupted=anchors, way=way)


def table_of(loaded, samples, references, columns, options=OPTIONS, **changes):
    """Signals without other prompts' columns."""
    return measure(
        loaded, samples, options, columns=frozenset(columns), checkpoint=1, references=references,
        contrast=(), contrast_prompts=0, **changes,
    )  # fmt: skip


def apart(found, expected):
    """Largest difference as a share of the largest expected number."""
    return np.abs(found - expected).max() / np.abs(expected).max()
