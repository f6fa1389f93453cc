"""Standardise features by the clean anchors of each domain, and measure the distance from them.

With n_d clean anchors of domain d, m the mean of all, v their variance within domains and τ² that
between domains' means, a domain's figures shrink to the pool by at most κ pseudo-anchors. The mean
shrinks by fewer, the further apart the domains lie::

    m_d = (n_d · mean_d + κ′ m) / (n_d + κ′)     κ′ = min(κ, v / τ²)
    v_d = (Σ (x − mean_d)² + κ v) / (n_d + κ)
    z   = (x − m_d) / √(v_d + floor²)            0 where x is missing

Typicality of a sample, with C the correlation of the clean anchors' z::

    t = −√(zᵀ (C + ρ I)⁻¹ z)

Reference:
    P. C. Mahalanobis, 1936, with Tikhonov's ridge; shrinkage: Efron and Morris, JASA 70, 1975.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

POOL = ""
"""Key of the pooled figures, which a domain without anchors takes."""
_FLAG_FLOOR = 0.1
_TINY = 1e-12
_FLAGS = frozenset({"has_end"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Standardizer:
    """Mean and spread of each feature over the clean anchors, by domain and pooled."""

    mean: Mapping[str, Float[np.ndarray, " features"]]
    spread: Mapping[str, Float[np.ndarray, " features"]]

    def __call__(
        self, values: Float[np.ndarray, "samples features"], domains: Sequence[str]
    ) -> Float[np.ndarray, "samples features"]:
        """Standardise; an unknown domain takes the pool's figures, a missing value becomes 0."""
        keys = [name if name in self.mean else POOL for name in domains]
        means = np.array([self.mean[key] for key in keys]).reshape(values.shape)
        spreads = np.array([self.spread[key] for key in keys]).reshape(values.shape)
        return np.asarray(np.nan_to_num((values - means) / spreads, nan=0.0))

    def arrays(self) -> dict[str, Float[np.ndarray, " features"]]:
        """Return the figures as named float64 arrays."""
        return {f"mean:{key}": value for key, value in self.mean.items()} | {
            f"spread:{key}": value for key, value in self.spread.items()
        }


def standardizer_from_arrays(arrays: Mapping[str, Float[np.ndarray, "..."]]) -> Standardizer:
    """Rebuild a standardizer from :meth:`Standardizer.arrays`; other names are ignored."""

    def part(prefix: str) -> dict[str, Float[np.ndarray, " features"]]:
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    return Standardizer(mean=part("mean:"), spread=part("spread:"))


def fit_standardizer(
    values: Float[np.ndarray, "anchors features"],
    domains: Sequence[str],
    *,
    names: Sequence[str],
    shrinkage: float,
) -> Standardizer:
    """Fit mean and spread of clean anchors, at least one; missing values (NaN) are left out.

    Args:
        values: Features of the clean anchors.
        domains: Domain of each.
        names: Names of the features: a flag such as ``has_end`` gets a floor of 0.1, so that a
            sample without what every anchor has stands out.
        shrinkage: κ, the most pseudo-anchors that pull a domain to the pool, above 0.
    """
    present = ~np.isnan(values)
    filled = np.where(present, values, 0.0)
    labels = np.array(domains, dtype=object)
    groups = {name: labels == name for name in sorted(set(domains))}
    counts = np.array([present[rows].sum(axis=0) for rows in groups.values()])
    held = np.maximum(counts, 1)
    means = np.array([filled[rows].sum(axis=0) for rows in groups.values()]) / held
    pooled = filled.sum(axis=0) / np.maximum(counts.sum(axis=0), 1)
    squares = np.array(
        [
            np.where(present[rows], (filled[rows] - own) ** 2, 0.0).sum(axis=0)
            for rows, own in zip(groups.values(), means, strict=True)
        ]
    )
    within = squares.sum(axis=0) / np.maximum(counts.sum(axis=0), 1)
    between = ((means - pooled) ** 2).mean(axis=0) - (within / held).mean(axis=0)
    pull = np.minimum(shrinkage, within / np.maximum(between, _TINY))
    means = (counts * means + pull * pooled) / np.maximum(counts + pull, _TINY)
    variances = (squares + shrinkage * within) / (counts + shrinkage)
    floor = np.array([_FLAG_FLOOR if name in _FLAGS else 1e-6 for name in names])
    floor = np.maximum(floor, 1e-6 * np.abs(pooled))
    mean = dict(zip(groups, means, strict=True)) | {POOL: pooled}
    spread = dict(zip(groups, np.sqrt(variances + floor**2), strict=True))
    return Standardizer(mean=mean, spread=spread | {POOL: np.sqrt(within + floor**2)})


def precision(
    standardised: Float[np.ndarray, "anchors features"], *, ridge: float
) -> Float[np.ndarray, "features features"]:
    """Return (C + ρ I)⁻¹ of the clean anchors; a constant feature correlates with none."""
    centred = standardised - standardised.mean(axis=0)
    covariance = centred.T @ centred / len(centred)
    spread = np.sqrt(np.diag(covariance))
    scale = np.where(spread > 1e-9, 1.0 / np.maximum(spread, 1e-9), 0.0)  # noqa: PLR2004 - nothing varies less
    correlation = covariance * np.outer(scale, scale)
    np.fill_diagonal(correlation, 1.0)
    return np.asarray(np.linalg.inv(correlation + ridge * np.eye(len(correlation))))


def typicality_of(
    standardised: Float[np.ndarray, "samples features"],
    inverse: Float[np.ndarray, "features features"],
) -> Float[np.ndarray, " samples"]:
    """Return t = −√(zᵀ C⁻¹ z): 0 for the average clean anchor, lower the further away."""
    # squares[n] = Σ_ij z[n, i] · inverse[i, j] · z[n, j]
    squares = np.einsum("ni,ij,nj->n", standardised, inverse, standardised)
    return np.asarray(-np.sqrt(np.maximum(squares, 0.0)))


def folds_of(parents: Sequence[str], domains: Sequence[str], folds: int) -> list[int]:
    """Return the fold of each row: copies of a parent share one, each domain spreads over all.

    It depends on the parents' ids and domains alone, not on the order of the rows.
    """
    home = dict(sorted(zip(parents, domains, strict=True), reverse=True))
    ordered = sorted(home, key=lambda parent: (home[parent], parent))
    fold = {parent: i % folds for i, parent in enumerate(ordered)}
    return [fold[parent] for parent in parents]
