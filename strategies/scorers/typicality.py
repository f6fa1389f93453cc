"""Score by nearness to the clean anchors in signal space (typicality); knows no corruption.

Score of sample n of domain d, z its signals standardised by the clean anchors of d (shrunk to the
pool), C their correlation:  s_n = −√(zᵀ (C + ρ I)⁻¹ z), in standard deviations. 0 is the average
clean anchor. A sample unlike every anchor, in either direction, scores low.

Reference:
    Mahalanobis distance as out-of-distribution score: Lee et al., NeurIPS 2018,
    https://arxiv.org/abs/1807.03888; here on training signals instead of hidden features.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from fedwinnow.curation.datatypes import Fitted, PublicRows, Scores, Trajectory
from fedwinnow.curation.errors import PluginError
from fedwinnow.strategies.maths.signal_features import (
    derive_features,
    has_signals,
    nearest_domains,
    take_samples,
)
from fedwinnow.strategies.maths.standardization import (
    fit_standardizer,
    folds_of,
    precision,
    standardizer_from_arrays,
    typicality_of,
)

COLUMNS = frozenset(
    {"loss", "loss_sd", "loss_q90", "length", "end_loss", "has_end", "unconditional_loss"}
)
"""Signals that the distance needs; all together cost two forward passes a sample."""
FEATURES = ("loss", "loss_sd", "loss_q90", "length", "has_end", "end_loss", "ira")
"""Features that the distance runs over."""
_SCHEMA = "typicality/1"
_Arrays = Mapping[str, Float[np.ndarray, "..."]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Typicality:
    """Typicality scorer; see the module."""

    shrinkage: float
    ridge: float
    folds: int
    columns: frozenset[str] = COLUMNS
    unit: str = "standard deviations"

    def fit(self, public: PublicRows) -> Fitted:
        """Fit mean, spread and correlation of the clean anchors.

        A public row's score comes from the anchors of the other folds: an anchor would lie too
        near to itself.

        Raises:
            PluginError: fewer than two clean anchors have signals.
        """
        usable = np.flatnonzero(has_signals(public.trajectory))
        usable = np.array(sorted(usable, key=lambda i: (public.parents[i], public.kinds[i], i)))
        clean = np.array([public.kinds[i] == "clean" for i in usable], dtype=bool)
        if clean.sum() < 2:  # noqa: PLR2004 - a spread needs two
            message = (
                "scorer 'typicality' needs at least 2 clean anchors with signals, "
                f"{clean.sum()} came; raise anchors.calibration or add anchors"
            )
            raise PluginError(message)
        table = take_samples(public.trajectory[:1], usable)[0]
        found = derive_features((table,), table.domains).select(FEATURES)
        fold = np.array(folds_of([public.parents[i] for i in usable], table.domains, self.folds))
        scores = np.full(len(public.parents), np.nan)
        for part in np.unique(fold):
            here, others = fold == part, clean & (fold != part)
            rows = others if others.sum() > 1 else clean
            arrays = self._arrays(found.values, table.domains, found.names, rows)
            inside = tuple(d for d, keep in zip(table.domains, here, strict=True) if keep)
            scores[usable[here]] = _distances(arrays, found.values[here], inside)
        return Fitted(
            schema=f"{_SCHEMA}:{','.join(found.names)}",
            parameters=self._arrays(found.values, table.domains, found.names, clean),
            public_scores=scores,
        )

    def score(self, trajectory: Trajectory, fitted: Fitted) -> Scores:
        """Return the negated distance of every sample from the clean anchors of its domain.

        Raises:
            PluginError: the columns differ from those of the fit.
        """
        scores = np.full(len(trajectory[0].ids), np.nan)
        usable = np.flatnonzero(has_signals(trajectory))
        if len(usable) == 0:
            return scores
        first = take_samples(trajectory[:1], usable)[0]
        domains = nearest_domains(first, standardizer_from_arrays(fitted.parameters).mean)
        found = derive_features((first,), domains).select(FEATURES)
        schema = f"{_SCHEMA}:{','.join(found.names)}"
        if schema != fitted.schema:
            message = (
                f"scorer 'typicality' was fitted as {fitted.schema!r}, but the samples give "
                f"{schema!r}; measure both with the same columns"
            )
            raise PluginError(message)
        scores[usable] = _distances(fitted.parameters, found.values, domains)
        return scores

    def _arrays(
        self,
        values: Float[np.ndarray, "rows features"],
        domains: tuple[str, ...],
        names: tuple[str, ...],
        rows: Bool[np.ndarray, " rows"],
    ) -> dict[str, Float[np.ndarray, "..."]]:
        inside = tuple(d for d, keep in zip(domains, rows, strict=True) if keep)
        standard = fit_standardizer(values[rows], inside, names=names, shrinkage=self.shrinkage)
        inverse = precision(standard(values[rows], inside), ridge=self.ridge)
        return standard.arrays() | {"inverse": inverse}


def typicality(*, shrinkage: float = 8.0, ridge: float = 0.1, folds: int = 8) -> Typicality:
    """Make the scorer.

    Args:
        shrinkage: Pseudo-anchors that pull a domain's mean and spread to the pool's, above 0.
        ridge: ρ, added to the diagonal of the correlation matrix, above 0.
        folds: Folds of the public rows' scores, at least 2.

    Raises:
        ValueError: a setting is out of range.
    """
    if not (0 < shrinkage < np.inf and 0 < ridge < np.inf) or folds < 2:  # noqa: PLR2004 - the documented range
        message = (
            "shrinkage and ridge above 0 and at least 2 folds are expected, "
            f"got {shrinkage}, {ridge} and {folds}"
        )
        raise ValueError(message)
    return Typicality(shrinkage=shrinkage, ridge=ridge, folds=folds)


def _distances(
    arrays: _Arrays, values: Float[np.ndarray, "rows features"], domains: tuple[str, ...]
) -> Float[np.ndarray, " rows"]:
    return typicality_of(standardizer_from_arrays(arrays)(values, domains), arrays["inverse"])
