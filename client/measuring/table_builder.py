"""Fill a signal table batch by batch, with statistics of each batch's losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedwinnow.client.measuring.references import References
from fedwinnow.curation.datatypes import Sample, SignalTable, Status
from fedwinnow.curation.model.token_losses import Batch
from fedwinnow.curation.signal_columns import WIDE
from fedwinnow.curation.tokens.tokenization import Encoding


@dataclass(slots=True, kw_only=True)
class SignalTableBuilder:
    """Signal columns that are being filled: float32, NaN where nothing has been put."""

    columns: dict[str, np.ndarray]
    status: np.ndarray

    @classmethod
    def empty(cls, number: int, columns: frozenset[str], references: int) -> "SignalTableBuilder":
        """Return unfilled rows for ``number`` samples."""
        return cls(
            columns={
                name: np.full((number, references) if name in WIDE else number, np.nan, np.float32)
                for name in columns
            },
            status=np.zeros(number, dtype=np.int8),
        )

    def usable(self, encodings: Sequence[Encoding]) -> np.ndarray:
        """Return the rows with a target; mark the others."""
        targets = np.array([encoding.has_target for encoding in encodings], dtype=bool)
        refused = np.array([bool(encoding.refusal) for encoding in encodings], dtype=bool)
        self.status[~targets] = Status.NO_TARGET
        self.status[refused] = Status.REFUSED
        return np.flatnonzero(targets)

    def reduce(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Fill the mean and minimum of each row's losses under other prompts."""
        for name, reduced in (("mean", values.mean(1)), ("min", values.min(1, initial=np.inf))):
            if f"contrast_loss_{name}" in self.columns:
                self.columns[f"contrast_loss_{name}"][rows] = reduced

    def put(self, rows: np.ndarray, found: Mapping[str, Tensor]) -> None:
        """Fill those of the columns that are requested."""
        for name, values in found.items():
            if name in self.columns:
                self.columns[name][rows] = values.detach().float().cpu().numpy()

    def put_losses(
        self, rows: np.ndarray, losses: Tensor, batch: Batch, encodings: Sequence[Encoding]
    ) -> None:
        """Fill the statistics of the bodies' token losses, and the loss of the last end of turn."""
        values = losses.float().cpu()
        first = batch.first
        for row, line, encoding in zip(rows, values, encodings, strict=True):
            body = _bodies(line, encoding, first).double()
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
                if name in self.columns:
                    self.columns[name][row] = float(value)

    def put_entropies(
        self, rows: np.ndarray, values: Tensor, batch: Batch, encodings: Sequence[Encoding]
    ) -> None:
        """Fill the bodies' mean, in float64; ``values`` hold all targets of a batch row by row."""
        targets = batch.targets[:, batch.first :].cpu()
        lines = torch.zeros(targets.shape, dtype=values.dtype).masked_scatter(targets, values.cpu())
        for row, line, encoding in zip(rows, lines, encodings, strict=True):
            body = _bodies(line, encoding, batch.first).double()
            self.columns["student_entropy"][row] = float(body.mean())

    def close(self) -> None:
        """Mark rows with a NaN or an infinity, and blank every row that is not OK."""
        for values in self.columns.values():
            broken = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
            self.status[broken & (self.status == Status.OK)] = Status.NON_FINITE
        for values in self.columns.values():
            values[self.status != Status.OK] = np.nan

    def closed(
        self,
        samples: Sequence[Sample],
        *,
        checkpoint: int,
        references: References | None,
        learning_rate: float,
    ) -> SignalTable:
        """Close and return the table of these samples; see :meth:`close`."""
        self.close()
        return SignalTable(
            ids=tuple(sample.id for sample in samples),
            domains=tuple(sample.domain for sample in samples),
            checkpoint=checkpoint,
            status=self.status,
            columns={name: self.columns[name] for name in sorted(self.columns)},
            references=() if references is None else references.names,
            reference_gram=np.zeros((0, 0)) if references is None else references.gram,
            learning_rate=learning_rate,
        )


def _bodies(line: Tensor, encoding: Encoding, first: int) -> Tensor:
    """Return the values at the learnt bodies' tokens; ``line`` begins at place ``first``."""
    return torch.cat([line[begin - first : end - first] for begin, end in encoding.bodies])
