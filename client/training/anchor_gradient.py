"""Compute the gradient of the reference anchors' mean loss by the loaded adapter's factors.

∇L with L = (1/n) Σ_i ℓ_i over reference anchors, ℓ_i the mean token loss: a function of base,
adapter and public anchors alone, so any member may send it.
"""

import torch

from fedwinnow.client.measuring.batching import Places, run_in_batches
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import DataError
from fedwinnow.curation.model.lora_model import factor_gradients
from fedwinnow.curation.model.token_losses import Batch, sample_losses


def anchor_gradient(run: SiteRun) -> Adapter:
    """Return ∂L/∂A and ∂L/∂B of every module, in the place of A and B, at the loaded adapter.

    Raises:
        DataError: no reference anchor has a response token.
    """
    loaded, options = run.loaded, run.pass_options
    encodings = list(options.encode(loaded, run.data.split.reference))
    usable = [one for one in encodings if one.has_target]
    if not usable:
        message = (
            f"reference anchors: expected one with a response token, got none among "
            f"{len(encodings)}; raise model.max_length"
        )
        raise DataError(message)

    def run_batch(_places: Places, batch: Batch) -> None:
        loss: torch.Tensor = sample_losses(loaded.model, batch).sum() / len(usable)
        loss.backward()

    def forget() -> None:
        loaded.model.zero_grad(set_to_none=True)

    def backward() -> None:
        run_in_batches(
            loaded, usable, run_batch, forget=forget, adds_up=True,
            batch_tokens=options.batch_tokens, kind="gradient", graph=True,
        )  # fmt: skip

    return factor_gradients(loaded, backward)
