"""Evaluate the loaded adapter: one mean token loss per sample.

ℓ_i = (1 / T_i) Σ_t −log p(y_t | x, y_<t) in nats, over body and end-of-turn token
(:mod:`fedwinnow.curation.model.token_losses`). Sums and counts travel, never means of means.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64

from fedwinnow.client.measuring.batching import Places, run_in_batches
from fedwinnow.client.measuring.pass_options import OnProgress, PassOptions, PassProgress
from fedwinnow.client.measuring.token_cache import cached_encodings
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import NonFiniteError
from fedwinnow.curation.model.lora_model import LoadedModel
from fedwinnow.curation.model.token_losses import Batch, sample_losses


def evaluate(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    options: PassOptions,
    *,
    on_progress: OnProgress | None = None,
    strict: bool = True,
) -> Float64[np.ndarray, " samples"]:
    """Return the mean token loss of each response, nats, in the samples' order.

    Args:
        loaded: Model with the adapter to evaluate; left as it was, dropout off meanwhile.
        samples: May be empty.
        options: How samples are read and batched.
        on_progress: Called with (samples done, samples).
        strict: Whether a loss that is NaN or infinite is an error. Else it is infinity, so that no
            error tells that a private sample has one.

    Returns:
        float64; NaN exactly where a sample has no response token: leave such samples out of sums
        and counts.

    Raises:
        NonFiniteError: ``strict``, and the model returned a NaN or an infinity.
    """
    losses = np.full(len(samples), np.nan)
    encodings = cached_encodings(loaded, samples, options)
    usable = np.array([i for i, e in enumerate(encodings) if e.has_target], dtype=np.int64)
    readable = [encodings[i] for i in usable]
    progress = PassProgress(total=len(readable), on_progress=on_progress)

    def run(places: Places, batch: Batch) -> None:
        losses[usable[places]] = sample_losses(loaded.model, batch).double().cpu().numpy()
        progress.add(len(places))

    training = loaded.model.training
    loaded.model.eval()
    try:
        with torch.no_grad():
            run_in_batches(loaded, readable, run, batch_tokens=options.batch_tokens, kind="loss")
    finally:
        loaded.model.train(training)
    strange = usable[~np.isfinite(losses[usable])]
    broken = len(strange)
    if not strict:
        losses[strange] = np.inf
    elif broken:
        message = (
            f"evaluation: expected finite losses, got NaN or infinity for {broken} of "
            f"{len(usable)} samples; lower training.learning_rate or use model.dtype = 'float32'"
        )
        raise NonFiniteError(message)
    return losses
