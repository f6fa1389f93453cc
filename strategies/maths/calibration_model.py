"""Fit the probability of being clean on public anchors and their corruptions, by a small model.

With z a sample's standardised features (``strategies/maths/standardization.py``) and t its
typicality::

    L = β · (z⁺, z⁻, t) + β₀     logistic regression on hinges, classes balanced, ridge λ
    T = α t + α₀, α ≥ 0          typicality alone: knows no corruption, so none can surprise it
    f = (1 − w) s(L) + w s(T),   s(x) = c tanh(x / c)
    p = σ(γ f + γ₀)              γ, γ₀ from f of held-out folds

p is the probability of being clean where clean and corrupted are equally many. A discriminative fit
alone inverts on kinds of corruption that nobody foresaw; T cannot, and s keeps L from outvoting it.
λ is the strongest within a standard error of the least held-out log loss over folds of parents.
In fitting, z and t of an anchor and of its copies come from the other folds' anchors, as those of
a private sample come from anchors alone.

Own code, as the fit must be equal bit for bit at all sites, whatever library each has installed; it
also saves a dependency on scikit-learn, which is a test's oracle only.

Reference:
    Platt, 1999 (calibration by a logistic of the score); ridge logistic by Newton's method:
    le Cessie and van Houwelingen, Applied Statistics 41, 1992.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from fedwinnow.strategies.maths.standardization import (
    Standardizer,
    fit_standardizer,
    precision,
    standardizer_from_arrays,
    typicality_of,
)

Model = Mapping[str, Float[np.ndarray, "..."]]
"""Fitted figures by name, float64: ``mean:DOMAIN``, ``spread:DOMAIN``, ``inverse``, …"""

RIDGES = (0.3, 0.1, 0.03, 0.01)
"""λ to choose from, strongest first, per unit of mean log loss."""
_FAR = -12.0
_REACH = 4.0
_CAP = 6.0
_CONVERGED = 1e-13


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Features of public rows, with domain, label (clean or not) and fold."""

    names: tuple[str, ...]
    values: Float[np.ndarray, "rows features"]
    """float64; NaN where a feature is missing."""
    domains: tuple[str, ...]
    clean: Bool[np.ndarray, " rows"]
    folds: Int[np.ndarray, " rows"]
    """Cross-validation fold of each row; all copies of a parent share one."""

    def take(self, rows: Bool[np.ndarray, " rows"]) -> "Rows":
        """Return the rows that the mask marks."""
        return Rows(
            names=self.names,
            values=self.values[rows],
            domains=tuple(d for d, keep in zip(self.domains, rows, strict=True) if keep),
            clean=self.clean[rows],
            folds=self.folds[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Settings of the fit."""

    typical: tuple[str, ...]
    """Features that typicality reads."""
    only_typical: frozenset[str] = frozenset()
    """Features that the discriminative part leaves out."""
    safeguard: float = 0.5
    """Weight w of typicality in f, in [0, 1]."""
    shrinkage: float = 8.0
    """κ of the standardisation, pseudo-anchors."""
    correlation_ridge: float = 0.1
    """ρ of typicality."""


def fit_model(rows: Rows, recipe: Recipe, *, ridge: float) -> dict[str, Float[np.ndarray, "..."]]:
    """Fit every part but γ; needs a clean and a corrupted row."""
    standard, inverse = _anchor(rows, recipe)
    inner = np.zeros_like(rows.values)
    distance = np.zeros(len(rows.clean))
    for fold in np.unique(rows.folds):
        here = rows.folds == fold
        others = rows.take(~here)
        part, turned = _anchor(others, recipe) if others.clean.any() else (standard, inverse)
        mine = rows.take(here)
        inner[here] = part(mine.values, mine.domains)
        distance[here] = typicality_of(inner[here][:, _typical(rows.names, recipe)], turned)
    discriminative = fit_logistic(
        _design(inner, distance, rows.names, recipe), rows.clean, ridge=ridge
    )
    alone = fit_logistic(np.maximum(distance, _FAR)[:, None], rows.clean, ridge=1e-5)
    return standard.arrays() | {
        "inverse": inverse,
        "beta": discriminative,
        "alpha": np.array([max(alone[0], 0.0), alone[1]]),
        "safeguard": np.array([recipe.safeguard]),
    }


def fused_logits(
    model: Model,
    values: Float[np.ndarray, "samples features"],
    domains: Sequence[str],
    *,
    names: tuple[str, ...],
    recipe: Recipe,
) -> Float[np.ndarray, " samples"]:
    """Return the fused logit f of each sample: higher is more likely clean."""
    standardised = standardizer_from_arrays(model)(values, domains)
    distance = typicality_of(standardised[:, _typical(names, recipe)], model["inverse"])
    beta, alpha = model["beta"], model["alpha"]
    seen = _design(standardised, distance, names, recipe) @ beta[:-1] + beta[-1]
    unseen = alpha[0] * distance + alpha[1]
    weight = float(model["safeguard"][0])
    return (1 - weight) * _squash(seen) + weight * _squash(unseen)


def cross_validated_logits(
    rows: Rows,
    recipe: Recipe,
    *,
    ridge: float,
    without: Bool[np.ndarray, " rows"] | None = None,
) -> Float[np.ndarray, " rows"]:
    """Return the fused logit f of every row, from the model of the other folds.

    Args:
        rows: Public rows.
        recipe: Settings of the fit.
        ridge: λ.
        without: Rows that no model sees, whatever their fold; each still gets its f.
    """
    scores = np.zeros(len(rows.clean))
    hidden = np.zeros(len(rows.clean), dtype=bool) if without is None else without
    for fold in np.unique(rows.folds):
        here = rows.folds == fold
        training = rows.take(~here & ~hidden)
        if not training.clean.any():  # every anchor with signals lies in this fold
            training = rows.take(~hidden)
        model = fit_model(training, recipe, ridge=ridge)
        mine = rows.take(here)
        scores[here] = fused_logits(
            model, mine.values, mine.domains, names=rows.names, recipe=recipe
        )
    return scores


def choose_ridge(rows: Rows, recipe: Recipe) -> tuple[float, Float[np.ndarray, " rows"]]:
    """Choose the strongest λ whose held-out log loss is within a standard error of the least.

    Returns:
        λ, and the held-out f that it gives.

    Reference:
        The one-standard-error rule: Breiman et al., Classification and Regression Trees, 1984.
    """
    scores = [cross_validated_logits(rows, recipe, ridge=ridge) for ridge in RIDGES]
    weights = _balance(rows.clean)
    parts = np.unique(rows.folds)
    losses = np.zeros((len(RIDGES), len(parts)))
    for i, found in enumerate(scores):
        loss = np.logaddexp(0.0, np.where(rows.clean, -found, found))
        for k, fold in enumerate(parts):
            here = rows.folds == fold
            losses[i, k] = np.sum(weights[here] * loss[here]) / np.sum(weights[here])
    means = losses.mean(axis=1)
    best = int(np.argmin(means))
    error = float(losses[best].std() / np.sqrt(max(len(parts) - 1, 1)))
    chosen = int(np.flatnonzero(means <= means[best] + error)[0])
    return RIDGES[chosen], scores[chosen]


def fit_logistic(
    design: Float[np.ndarray, "rows columns"], clean: Bool[np.ndarray, " rows"], *, ridge: float
) -> Float[np.ndarray, " coefficients"]:
    """Fit class-balanced ridge logistic regression; the last coefficient is an unpenalised offset.

    Minimises Σ_n w_n log(1 + exp(−y_n β·x_n)) + λ/2 ‖β‖² by damped Newton steps, Σ w_n = 1.
    """
    x = np.concatenate([design, np.ones((len(design), 1))], axis=1)
    weights = _balance(clean)
    penalty = np.full(x.shape[1], ridge)
    penalty[-1] = 1e-9
    sign = np.where(clean, 1.0, -1.0)
    beta = np.zeros(x.shape[1])

    for _ in range(100):
        margin = x @ beta
        now = np.sum(weights * np.logaddexp(0.0, -sign * margin)) + 0.5 * penalty @ beta**2
        p = np.exp(-np.logaddexp(0.0, -margin))
        gradient = x.T @ (weights * (p - clean)) + penalty * beta
        curvature = (x * (weights * p * (1 - p))[:, None]).T @ x + np.diag(penalty + 1e-12)
        step = np.linalg.solve(curvature, gradient)
        for halving in range(20):
            tried = beta - step / 2**halving
            margin = x @ tried
            then = np.sum(weights * np.logaddexp(0.0, -sign * margin)) + 0.5 * penalty @ tried**2
            if then <= now:
                beta = tried
                break
        if now - then < _CONVERGED:
            break
    return beta


def sigmoid(logit: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    """Return σ(x), without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -logit)))


def _anchor(
    rows: Rows, recipe: Recipe
) -> tuple[Standardizer, Float[np.ndarray, "typical typical"]]:
    """Fit standardisation and precision matrix of the clean rows."""
    anchors = rows.take(rows.clean)
    standard = fit_standardizer(
        anchors.values, anchors.domains, names=rows.names, shrinkage=recipe.shrinkage
    )
    z = standard(anchors.values, anchors.domains)[:, _typical(rows.names, recipe)]
    return standard, precision(z, ridge=recipe.correlation_ridge)


def _typical(names: tuple[str, ...], recipe: Recipe) -> list[int]:
    return [i for i, name in enumerate(names) if name in recipe.typical]


def _design(
    standardised: Float[np.ndarray, "samples features"],
    distance: Float[np.ndarray, " samples"],
    names: tuple[str, ...],
    recipe: Recipe,
) -> Float[np.ndarray, "samples columns"]:
    """Return hinges z⁺ and z⁻, cut at 4, and typicality, cut at −12."""
    keep = [i for i, name in enumerate(names) if name not in recipe.only_typical]
    z = standardised[:, keep]
    up, down = np.clip(z, 0.0, _REACH), np.clip(-z, 0.0, _REACH)
    return np.concatenate([up, down, np.maximum(distance, _FAR)[:, None]], axis=1)


def _squash(logit: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    return np.asarray(_CAP * np.tanh(logit / _CAP))


def _balance(clean: Bool[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Return weights that sum to one half over each class."""
    return np.asarray(np.where(clean, 0.5 / max(clean.sum(), 1), 0.5 / max((~clean).sum(), 1)))
