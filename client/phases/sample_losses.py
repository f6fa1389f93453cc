"""Measure mean token losses of samples under the adapter that the model holds."""

import math
from collections.abc import Sequence

import numpy as np

from fedwinnow.client.measuring.evaluation import evaluate
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.curation.datatypes import Sample


def with_target(run: SiteRun, samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples that have a response token within the longest sample."""
    encodings = run.pass_options.encode(run.loaded, samples)
    return [one for one, tokens in zip(samples, encodings, strict=True) if tokens.has_target]


def largest_loss(run: SiteRun) -> float:
    """Return the loss of a uniform guess among the model's tokens, ln(vocabulary), nats."""
    return math.log(max(2, run.loaded.model.get_input_embeddings().weight.shape[0]))


def sample_losses(run: SiteRun, samples: Sequence[Sample], *, strict: bool = True) -> np.ndarray:
    """Return the mean token loss of each sample that has a response token, nats.

    Without ``strict`` a loss that is NaN or infinite is infinity, and no error.
    """
    report = run.cache.on_progress(f"{run.site} evaluates")
    values = evaluate(run.loaded, samples, run.pass_options, on_progress=report, strict=strict)
    known: np.ndarray = values[~np.isnan(values)]
    return known
