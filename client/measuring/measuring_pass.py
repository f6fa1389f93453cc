"""Run the measuring pass: every signal of every sample at one checkpoint, in length buckets.

One forward pass gives the losses, their spread, the end-of-turn loss and the representation; where
gradient columns are requested, the same pass is followed by one backward pass that contracts the
per-sample LoRA gradients (or by what the chosen backend does instead:
``client/measuring/backends.py``). Unconditional and contrastive losses are forward passes of the
SAME body tokens under another prompt. Only the requested columns are computed.

The per-sample loss of the gradient is the mean over body and end of turn; the loss columns are over
the body alone, so that truncation shows in ``has_end`` and ``end_loss`` and nowhere else.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from fedwinnow.client.measuring.backends import (
    BackendChoice,
    batch_runner,
    check_columns,
    choose_backend,
)
from fedwinnow.client.measuring.batching import Places, run_in_batches
from fedwinnow.client.measuring.contrastive_losses import (
    ContrastPrompts,
    contrastive_losses,
    unconditional_losses,
)
from fedwinnow.client.measuring.pass_options import OnProgress, PassOptions, PassProgress
from fedwinnow.client.measuring.references import References
from fedwinnow.client.measuring.table_builder import SignalTableBuilder
from fedwinnow.client.measuring.token_cache import cached_encodings
from fedwinnow.curation.config.scoring import Backend
from fedwinnow.curation.datatypes import Sample, SignalTable
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.model.hidden_states import last_hidden, mean_states
from fedwinnow.curation.model.lora_model import LoadedModel
from fedwinnow.curation.model.token_losses import Batch, entropies
from fedwinnow.curation.signal_columns import (
    CONTRASTS,
    ENTROPY,
    GRADIENTS,
    KNOWN,
    OTHER_PROMPTS,
    REPRESENTATIONS,
)
from fedwinnow.curation.tokens.tokenization import Encoding


def measure(  # noqa: PLR0913 - every choice is an argument, not a section of the config
    loaded: LoadedModel,
    samples: Sequence[Sample],
    options: PassOptions,
    *,
    columns: frozenset[str],
    checkpoint: int,
    references: References | None,
    contrast: Sequence[Sample],
    contrast_prompts: int,
    learning_rate: float = 0.0,
    on_progress: OnProgress | None = None,
    backend: Backend = "auto",
) -> SignalTable:
    """Measure samples with the loaded adapter.

    Args:
        loaded: Model with the adapter of this checkpoint.
        samples: Read one by one; only their tokens are held.
        options: How samples are read and batched.
        columns: Names of the wanted columns (``KNOWN``).
        checkpoint: 0 for the untrained adapter.
        references: Reference gradients and representations; needed for those columns.
        contrast: PUBLIC samples whose prompts take the place of each response's own.
        contrast_prompts: How many of them for each response.
        learning_rate: Recorded in the table.
        on_progress: Called with (samples done, samples of all passes).
        backend: How gradient columns are taken (``client/measuring/backends.py``).

    Returns:
        Rows in the samples' order, float32; NaN in every column of a row whose status is not OK.

    Raises:
        ModelError: a column is unknown, needs references, or cannot be given by the backend; or the
            adapter cannot be measured.
        DataError: there is no other public prompt to contrast with.
    """
    _check(columns, references)
    choice = choose_backend(backend, loaded)
    check_columns(columns, choice, loaded)
    table = SignalTableBuilder.empty(
        len(samples), columns, len(references.names) if references else 0
    )
    encodings = cached_encodings(loaded, samples, options)
    usable = table.usable(encodings)
    own, against = columns - OTHER_PROMPTS, columns & CONTRASTS
    bare = "unconditional_loss" in columns
    passes = bool(own) + bare + contrast_prompts * bool(against)
    progress = PassProgress(total=len(usable) * passes, on_progress=on_progress)
    if own:  # also without a usable sample: an unfit adapter is always refused
        _main_pass(loaded, encodings, usable, table, references, options, progress, choice)
    readable = [encodings[i] for i in usable]
    if bare:
        values = unconditional_losses(loaded, readable, options, progress)
        table.columns["unconditional_loss"][usable] = values
    if against:
        chosen = [samples[int(i)] for i in usable]
        prompts, each = ContrastPrompts.of(loaded, contrast, options), contrast_prompts
        values = contrastive_losses(loaded, chosen, readable, prompts, each, options, progress)
        table.reduce(usable, values)
    return table.closed(
        samples, checkpoint=checkpoint, references=references, learning_rate=learning_rate
    )


def _check(columns: frozenset[str], references: References | None) -> None:
    unknown = sorted(columns - KNOWN)
    if unknown:
        message = (
            f"signal columns {', '.join(unknown)} are unknown; known: {', '.join(sorted(KNOWN))}"
        )
        raise ModelError(message)
    needing = columns & (GRADIENTS | REPRESENTATIONS)
    if needing and references is None:
        message = (
            f"signal columns {', '.join(sorted(needing))} need reference anchors; give references"
        )
        raise ModelError(message)


def _main_pass(
    loaded: LoadedModel,
    encodings: Sequence[Encoding],
    usable: np.ndarray,
    table: SignalTableBuilder,
    references: References | None,
    options: PassOptions,
    progress: PassProgress,
    choice: BackendChoice,
) -> None:
    """Measure losses, representation and gradients of every usable sample under its own prompt."""
    wanted = frozenset(table.columns)
    gradients = bool(wanted & GRADIENTS)
    uncertain = list[Tensor]()
    look = (lambda logits: uncertain.append(entropies(logits))) if wanted & ENTROPY else None
    with ExitStack() as stack:
        run = stack.enter_context(batch_runner(choice, loaded, references, wanted))
        seen = stack.enter_context(last_hidden(loaded)) if wanted & REPRESENTATIONS else []

        def one(places: Places, batch: Batch) -> None:
            rows = usable[places]
            chosen = [encodings[i] for i in rows]
            losses, found = run(batch, look)
            table.put(rows, found)
            table.put_losses(rows, losses, batch, chosen)
            if uncertain:
                table.put_entropies(rows, torch.cat(uncertain), batch, chosen)
                uncertain.clear()
            if wanted & REPRESENTATIONS and references is not None:
                table.put(rows, references.similarity(mean_states(seen.pop(), batch, chosen)))
                seen.clear()  # a backend may have run the batch more than once
            progress.add(len(rows))

        def forget() -> None:
            uncertain.clear()
            seen.clear()

        run_in_batches(
            loaded, [encodings[i] for i in usable], one, forget=forget,
            batch_tokens=options.batch_tokens, kind=choice.name if gradients else "loss",
            graph=gradients and choice.name != "forward",
        )  # fmt: skip
