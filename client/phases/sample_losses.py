"""Measure mean token losses of samples under the adapter that the model holds."""

from collections.abc import Sequence

import numpy as np

from fedwinnow.client.measuring.evaluation import evaluate
from fedwinnow.client.measuring.token_cache import FOLDER
from fedwinnow.client.runs.site_run import Work
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.model.pretrained import encode_all


def with_target(work: Work, samples: Sequence[Sample]) -> list[Sample]:
    """Those that have a response token within the longest sample."""
    terms = work.terms.model
    encodings = encode_all(
        work.loaded, samples, max_length=terms.max_length, system_prompt=terms.system_prompt
    )
    return [one for one, tokens in zip(samples, encodings, strict=True) if tokens.has_target]


def sample_losses(work: Work, samples: Sequence[Sample]) -> np.ndarray:
    """Mean token loss of each sample that has a response token, nats."""
    values = evaluate(
        work.loaded,
        samples,
        batch_tokens=work.terms.measuring.batch_tokens,
        max_length=work.terms.model.max_length,
        system_prompt=work.terms.model.system_prompt,
        tokens=work.folder / FOLDER,
    )
    known: np.ndarray = values[~np.isnan(values)]
    return known
