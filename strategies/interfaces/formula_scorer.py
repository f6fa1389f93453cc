"""Build scorers without parameters: a score is a formula over columns, nothing is fitted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from fedwinnow.curation.datatypes import (
    Fitted,
    PublicRows,
    Scores,
    SignalTable,
    Status,
    Trajectory,
)
from fedwinnow.curation.errors import PluginError
from fedwinnow.curation.scores.ranking_metrics import auroc

Formula = Callable[[Trajectory], Float[np.ndarray, " samples"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FormulaScorer:
    """Scorer that computes one formula over signal columns."""

    name: str
    columns: frozenset[str]
    unit: str
    formula: Formula

    def fit(self, public: PublicRows) -> Fitted:
        """Score the public rows; there is nothing to fit."""
        scores = self._scores(public.trajectory)
        return Fitted(
            schema=f"{self.name}/1",
            public_scores=scores,
            forecast=forecast_auroc(scores, public.kinds),
        )

    def score(self, trajectory: Trajectory, fitted: Fitted) -> Scores:  # noqa: ARG002 - every scorer has this form
        """Apply the formula; NaN where a checkpoint has no signals of the sample."""
        return self._scores(trajectory)

    def _scores(self, trajectory: Trajectory) -> Scores:
        usable = np.logical_and.reduce([table.status == Status.OK for table in trajectory])
        with np.errstate(invalid="ignore", divide="ignore"):
            values = self.formula(trajectory).astype(np.float64)
        return np.where(usable & np.isfinite(values), values, np.nan)


def forecast_auroc(scores: Scores, kinds: Sequence[str]) -> dict[str, float]:
    """Return the AUROC of clean against corrupted public rows, over all kinds and by kind."""
    labels = np.array(kinds)
    known = ~np.isnan(scores)
    found: dict[str, float] = {}
    for kind in ("", *sorted(set(kinds) - {"clean"})):
        rows = known & ((labels == "clean") | (labels == kind) | (kind == ""))
        clean = labels[rows] == "clean"
        if clean.any() and not clean.all():
            found[f"auroc_{kind}" if kind else "auroc"] = auroc(scores[rows], clean)
    return found


def column(table: SignalTable, name: str) -> Float[np.ndarray, "samples ..."]:
    """Return a copy of a signal column in float64.

    Raises:
        PluginError: the column was not measured.
    """
    if name not in table.columns:
        message = (
            f"a scorer reads column {name!r}, but checkpoint {table.checkpoint} holds "
            f"{', '.join(sorted(table.columns)) or 'none'}; name it in the scorer's columns"
        )
        raise PluginError(message)
    return table.columns[name].astype(np.float64)


def trained_checkpoints(trajectory: Trajectory, scorer: str) -> Sequence[SignalTable]:
    """Return the tables of checkpoints after warm-up, which alone hold gradient columns.

    Raises:
        PluginError: there is no such checkpoint.
    """
    tables = trajectory[1:]
    if not tables:
        message = (
            f"scorer {scorer!r} needs signals after warm-up, which run.trajectory = 'none' leaves "
            "out; set run.trajectory = 'global'"
        )
        raise PluginError(message)
    return tables


def rate_shares(tables: Sequence[SignalTable]) -> Float[np.ndarray, " checkpoints"]:
    """Return the checkpoints' learning rates as shares of their sum; equal where none is noted."""
    rates = np.array([table.learning_rate for table in tables], dtype=np.float64)
    total = rates.sum()
    return rates / total if total > 0 else np.full(len(tables), 1 / len(tables))


def reference_cosines(
    table: SignalTable, dot: str, norm: str
) -> Float[np.ndarray, "samples references"]:
    """Return the cosine with each domain's mean reference gradient; 0 where a gradient is zero."""
    lengths = np.sqrt(np.diag(table.reference_gram))
    product, found = column(table, norm)[:, None] * lengths[None, :], column(table, dot)
    there = product > 0
    np.divide(found, product, out=found, where=there)  # a column is a copy
    found[~there] = 0.0
    return found


def clean_rows(public: PublicRows, checkpoint: int, name: str) -> Bool[np.ndarray, " rows"]:
    """Return a mask of the public rows that are clean and have signals at a checkpoint.

    Raises:
        PluginError: no row is; names the scorer.
    """
    clean = np.array([kind == "clean" for kind in public.kinds], dtype=bool)
    clean &= public.trajectory[checkpoint].status == Status.OK
    if not clean.any():
        message = (
            f"scorer {name!r} needs a clean public row with signals, and there is none; raise "
            "anchors.calibration or the number of anchors"
        )
        raise PluginError(message)
    return clean
