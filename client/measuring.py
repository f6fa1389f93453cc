"""The measuring pass: every signal of every sample at one checkpoint, in length-bucketed batches.

One forward pass gives the losses, their spread, the end-of-turn loss and the representation; where
gradient columns are asked for, the same pass is followed by one backward pass that contracts the
per-sample LoRA gradients (``curation/gradients.py``). Unconditional and contrastive losses are
forward passes of the SAME body tokens under another prompt. Only the asked columns are computed.

The per-sample loss of the gradient is the mean over body and end of turn; the loss columns are over
the body alone, so that truncation shows in ``has_end`` and ``end_loss`` and nowhere else.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedwinnow.client.contrast import Prompts, contrast_losses, unconditional_losses
from fedwinnow.client.hidden import last_hidden, mean_states
from fedwinnow.client.reading import Count, Reading, Told
from fedwinnow.client.references import References
from fedwinnow.curation.columns import (
    CONTRASTS,
    ENTROPY,
    GRADIENTS,
    KNOWN,
    OTHER_PROMPTS,
    REPRESENTATIONS,
    WIDE,
)
from fedwinnow.curation.contraction import Contraction
from fedwinnow.curation.encoding import Encoding
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.gradients import evaluating, sample_gradients
from fedwinnow.curation.losses import Batch, collate, entropies, plan_batches, token_losses
from fedwinnow.curation.modeling import LoadedModel, encode
from fedwinnow.curation.nouns import Sample, SignalTable, Status


def measure(  # noqa: PLR0913 - configuration stops at the door: every choice is an argument
    loaded: LoadedModel,
    samples: Sequence[Sample],
    *,
    columns: frozenset[str],
    checkpoint: int,
    references: References | None,
    contrast: Sequence[Sample],
    contrast_prompts: int,
    batch_tokens: int,
    max_length: int,
    system_prompt: str = "",
    learning_rate: float = 0.0,
    progress: Told | None = None,
) -> SignalTable:
    """Measure samples with the loaded adapter.

    Args:
        loaded: Model with the adapter of this checkpoint.
        samples: Read one by one; only their tokens are held.
        columns: Names of the wanted columns (``KNOWN``).
        checkpoint: 0 for the untrained adapter.
        references: Reference gradients and representations; needed for those columns.
        contrast: PUBLIC samples whose prompts stand against each response.
        contrast_prompts: How many of them for each response.
        batch_tokens: Tokens of a pass, padding included; changes results by rounding only.
        max_length: Longest sample in tokens.
        system_prompt: System message before every sample.
        learning_rate: Noted in the table.
        progress: Called with (samples done, samples of all passes).

    Returns:
        Rows in the samples' order, float32; NaN in every column of a row whose status is not OK.

    Raises:
        ModelError: a column is unknown or needs references, or the adapter cannot be measured.
        DataError: there is no other public prompt to contrast with.
    """
    _check(columns, references)
    reading = Reading(batch_tokens=batch_tokens, max_length=max_length, system_prompt=system_prompt)
    names = () if references is None else references.names
    table = _Rows.empty(len(samples), columns, len(names))
    read = partial(encode, loaded, max_length=max_length, system_prompt=system_prompt)
    encodings = [read(sample) for sample in samples]
    usable = table.usable(encodings)
    own, against = columns - OTHER_PROMPTS, columns & CONTRASTS
    bare = "unconditional_loss" in columns
    passes = bool(own) + bare + contrast_prompts * bool(against)
    count = Count(total=len(usable) * passes, told=progress)
    readable = [encodings[i] for i in usable]
    if own:
        _main_pass(loaded, encodings, usable, table, references, reading, count)
    if bare:
        values = unconditional_losses(loaded, readable, reading, count)
        table.columns["unconditional_loss"][usable] = values
    if against:
        prompts = Prompts.of(loaded, contrast, reading)
        chosen = [samples[int(i)] for i in usable]
        each = contrast_prompts
        values = contrast_losses(loaded, chosen, readable, prompts, each, reading, count)
        table.reduce(usable, values)
    table.close()
    return SignalTable(
        ids=tuple(sample.id for sample in samples),
        domains=tuple(sample.domain for sample in samples),
        checkpoint=checkpoint,
        status=table.status,
        columns={name: table.columns[name] for name in sorted(columns)},
        references=names,
        reference_gram=np.zeros((0, 0)) if references is None else references.gram,
        learning_rate=learning_rate,
    )


@dataclass(slots=True, kw_only=True)
class _Rows:
    columns: dict[str, np.ndarray]
    status: np.ndarray

    @classmethod
    def empty(cls, number: int, columns: frozenset[str], references: int) -> "_Rows":
        return cls(
            columns={
                name: np.full((number, references) if name in WIDE else number, np.nan, np.float32)
                for name in columns
            },
            status=np.zeros(number, dtype=np.int8),
        )

    def usable(self, encodings: Sequence[Encoding]) -> np.ndarray:
        """Rows with a target; the others are marked."""
        targets = np.array([encoding.has_target for encoding in encodings], dtype=bool)
        self.status[~targets] = Status.NO_TARGET
        return np.flatnonzero(targets)

    def reduce(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Mean and least of each row's losses under other prompts."""
        for name, reduced in (("mean", values.mean(1)), ("min", values.min(1, initial=np.inf))):
            if f"contrast_loss_{name}" in self.columns:
                self.columns[f"contrast_loss_{name}"][rows] = reduced

    def put(self, name: str, rows: np.ndarray, values: Tensor) -> None:
        if name in self.columns:
            self.columns[name][rows] = values.detach().float().cpu().numpy()

    def close(self) -> None:
        """Mark rows with a NaN or an infinity, and blank every row that is not OK."""
        for values in self.columns.values():
            broken = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
            self.status[broken & (self.status == Status.OK)] = Status.NON_FINITE
        for values in self.columns.values():
            values[self.status != Status.OK] = np.nan


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
    table: _Rows,
    references: References | None,
    reading: Reading,
    count: Count,
) -> None:
    """Losses, representation and gradients of every usable sample under its own prompt."""
    wanted = set(table.columns)
    lengths = np.array([len(encodings[i].tokens) for i in usable], dtype=np.int64)
    contraction, uncertain = None, list[Tensor]()
    look = (lambda logits: uncertain.append(entropies(logits))) if wanted & ENTROPY else None
    with ExitStack() as stack:
        if wanted & GRADIENTS and references is not None:
            contraction = references.contraction(wanted)
            firing = stack.enter_context(
                sample_gradients(loaded.model, dict(loaded.layers()), contraction)
            )
        else:
            stack.enter_context(evaluating(loaded.model))
            stack.enter_context(torch.no_grad())
        seen = stack.enter_context(last_hidden(loaded)) if wanted & REPRESENTATIONS else []
        for places in plan_batches(lengths, reading.batch_tokens):
            rows = usable[places]
            chosen = [encodings[i] for i in rows]
            batch = collate(chosen).to(loaded.device)
            losses = token_losses(loaded.model, batch, look=look)
            if contraction is not None:
                each = losses.sum(dim=1) / batch.targets[:, batch.first :].sum(dim=1)
                each.sum().backward()
                firing.check()
                _put_gradients(table, rows, contraction)
                contraction.reset()
            _put_losses(table, rows, losses.detach(), batch, chosen)
            if uncertain:
                _put_entropies(table, rows, uncertain.pop(), batch, chosen)
            if wanted & REPRESENTATIONS and references is not None:
                states = mean_states(seen.pop(), batch, chosen)
                for name, values in references.similarity(states).items():
                    table.put(name, rows, values)
            count.add(len(rows))


def _put_gradients(table: _Rows, rows: np.ndarray, contraction: Contraction) -> None:
    for name, values in (
        ("dot", contraction.dots),
        ("adam_dot", contraction.adam_dots),
        ("adam_adam_dot", contraction.adam_adam_dots),
        ("influence", contraction.influences),
    ):
        if name in table.columns:
            table.put(name, rows, values)
    for name, squares in (("norm", contraction.squares), ("adam_norm", contraction.adam_squares)):
        if name in table.columns:
            table.put(name, rows, squares.sqrt())


def _put_losses(
    table: _Rows, rows: np.ndarray, losses: Tensor, batch: Batch, encodings: Sequence[Encoding]
) -> None:
    """Statistics of the body's token losses, and the loss of the end of turn."""
    values = losses.float().cpu()
    first = batch.first
    for row, line, encoding in zip(rows, values, encodings, strict=True):
        body = line[encoding.response_start - first : encoding.body_end - first].double()
        closing = encoding.body_end - first
        has_end = len(encoding.tokens) > encoding.body_end
        found = {
            "loss": body.mean(),
            "loss_sd": body.std(correction=0),
            "loss_q90": torch.quantile(body, 0.9),
            "length": torch.tensor(float(len(body))),
            "has_end": torch.tensor(float(has_end)),
            "end_loss": line[closing] if has_end else torch.tensor(0.0),
        }
        for name, value in found.items():
            if name in table.columns:
                table.columns[name][row] = float(value)


def _put_entropies(
    table: _Rows, rows: np.ndarray, values: Tensor, batch: Batch, encodings: Sequence[Encoding]
) -> None:
    """Mean over the body, in float64; ``values`` are of all targets, row by row of the batch."""
    first, start, flat = batch.first, 0, values.cpu()
    for row, encoding in zip(rows, encodings, strict=True):
        begin = max(encoding.response_start, first)
        line = flat[start : start + len(encoding.tokens) - begin]
        start += len(line)
        body = line[: encoding.body_end - begin].double()
        table.columns["student_entropy"][row] = float(body.mean())
