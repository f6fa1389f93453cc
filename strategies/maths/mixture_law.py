"""Fit how the loss of each category of anchors follows from the sites' weights in a merge.

For weights r on the simplex (Σ_j r_j = 1), and each category i a law of its own:

    L_i(r) = c_i + exp( Σ_j t_ij r_j )

The factor k_i of the paper's form is in the t_ij, as the weights sum to 1. Fitted by least squares
with Huber's loss from several starts; the best mixture minimises the mean of the L_i, which is
convex in r, within bounds for each site.

Reference:
    J. Ye et al., Data Mixing Laws: Optimizing Data Mixtures by Predicting Language Modeling
    Performance, ICLR 2025, equation 7, https://arxiv.org/abs/2403.16952
    Differs from the paper: weights are those of a merge of adapters, not shares of the samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares, minimize

from fedwinnow.curation.errors import NonFiniteError, ProtocolError

_STARTS = 8
_BOUND = 30.0
"""Largest |t|: exp of it is beyond any loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureRun:
    """Weights of one merge, and the losses measured after it."""

    weights: Mapping[str, float]
    """Site → share; they sum to 1."""
    losses: Mapping[str, float]
    """Category of anchors → mean loss, nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixingLaw:
    """Fitted laws of all categories."""

    sites: tuple[str, ...]
    floors: Mapping[str, float]
    """Category → c, nats."""
    slopes: Mapping[str, tuple[float, ...]]
    """Category → t of each site."""
    error: float
    """Root mean square of fitted − measured over all runs and categories, nats."""

    def losses(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Return the expected loss of each category, nats; a site without a weight counts as 0."""
        r = np.array([weights.get(site, 0.0) for site in self.sites])
        return {
            name: float(self.floors[name] + np.exp(np.asarray(t) @ r))
            for name, t in self.slopes.items()
        }


def fit_mixing_law(runs: Sequence[MixtureRun], *, seed: int = 0) -> MixingLaw:
    """Fit one law to each category.

    Args:
        runs: At least two more than there are sites, all of the same sites and categories.
        seed: Seed of the starts.

    Raises:
        NonFiniteError: a weight or a loss is no number.
        ProtocolError: there are too few runs, or they differ in sites or categories.
    """
    sites, categories = _same(runs)
    mixtures = np.array([[run.weights[site] for site in sites] for run in runs])
    floors, slopes, squares = {}, {}, []
    draw = np.random.default_rng(seed)
    for name in categories:
        losses = np.array([run.losses[name] for run in runs])
        found = _fit(mixtures, losses, draw)
        floors[name], slopes[name] = float(found[0]), tuple(float(t) for t in found[1:])
        squares.append(float(np.mean((_law(found, mixtures) - losses) ** 2)))
    return MixingLaw(
        sites=sites, floors=floors, slopes=slopes, error=float(np.mean(squares) ** 0.5)
    )


def best_mixture(law: MixingLaw, *, least: float, most: float) -> dict[str, float]:
    """Return the weights with the smallest expected mean loss over categories.

    Args:
        law: The fitted laws.
        least: Smallest weight of a site, in [0, 1 / sites].
        most: Largest weight, in [1 / sites, 1].

    Raises:
        ProtocolError: no weights lie within the bounds.
    """
    number = len(law.sites)
    if not 0 <= least <= 1 / number <= most <= 1:
        message = (
            f"weights between {least} and {most} for {number} sites: expected least ≤ "
            f"{1 / number:.3f} ≤ most; widen the bounds"
        )
        raise ProtocolError(message)
    slopes = np.array([law.slopes[name] for name in sorted(law.slopes)])

    def mean(r: np.ndarray) -> float:
        return float(np.exp(slopes @ r).mean())

    def gradient(r: np.ndarray) -> np.ndarray:
        found: np.ndarray = (np.exp(slopes @ r)[:, None] * slopes).mean(axis=0)
        return found

    found = minimize(
        mean,
        np.full(number, 1 / number),
        jac=gradient,
        method="SLSQP",
        bounds=[(least, most)] * number,
        constraints={"type": "eq", "fun": lambda r: r.sum() - 1.0},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    r = np.clip(found.x, least, most)
    return dict(zip(law.sites, (r / r.sum()).tolist(), strict=True))


def _same(runs: Sequence[MixtureRun]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    sites = tuple(sorted(runs[0].weights)) if runs else ()
    categories = tuple(sorted(runs[0].losses)) if runs else ()
    needed = len(sites) + 2
    if len(runs) < needed or not sites or not categories:
        message = (
            f"mixing law: expected at least {needed} runs for {len(sites)} sites, got {len(runs)}; "
            "measure more mixtures with `fedwinnow mixture --mixtures`"
        )
        raise ProtocolError(message)
    for number, run in enumerate(runs, start=1):
        if tuple(sorted(run.weights)) != sites or tuple(sorted(run.losses)) != categories:
            message = (
                f"mixing law, run {number}: expected weights of {', '.join(sites)} and losses of "
                f"{', '.join(categories)}, got {sorted(run.weights)} and {sorted(run.losses)}"
            )
            raise ProtocolError(message)
        values = np.array([*run.weights.values(), *run.losses.values()])
        if not bool(np.isfinite(values).all()):
            message = f"mixing law, run {number}: a weight or a loss is no number; leave it out"
            raise NonFiniteError(message)
    return sites, categories


def _fit(
    mixtures: Float[np.ndarray, "runs sites"],
    losses: Float[np.ndarray, " runs"],
    draw: np.random.Generator,
) -> Float[np.ndarray, " parameters"]:
    """Fit c and t of least Huber loss; each start sets c to a share of the smallest loss."""
    spread = max(float(losses.std()), 1e-9)
    low = np.array([0.0, *[-_BOUND] * mixtures.shape[1]])
    high = np.array([float(losses.min()), *[_BOUND] * mixtures.shape[1]])
    best, smallest = np.zeros_like(low), np.inf
    for start in np.linspace(0.0, 0.98, _STARTS):
        floor = start * losses.min()
        slopes = np.linalg.lstsq(mixtures, np.log(losses - floor), rcond=None)[0]
        slopes = slopes + 0.01 * draw.normal(size=slopes.shape)
        guess = np.clip(np.array([floor, *slopes]), low + 1e-12, high - 1e-12)
        found = least_squares(
            lambda p: (_law(p, mixtures) - losses) / spread,
            guess,
            jac=lambda p: _jacobian(p, mixtures) / spread,
            bounds=(low, high),
            loss="huber",
            x_scale="jac",
            max_nfev=400,
        )
        if found.cost < smallest:
            best, smallest = found.x, float(found.cost)
    return best


def _law(
    parameters: Float[np.ndarray, " parameters"], mixtures: Float[np.ndarray, "runs sites"]
) -> Float[np.ndarray, " runs"]:
    values: np.ndarray = parameters[0] + np.exp(mixtures @ parameters[1:])
    return values


def _jacobian(
    parameters: Float[np.ndarray, " parameters"], mixtures: Float[np.ndarray, "runs sites"]
) -> Float[np.ndarray, "runs parameters"]:
    steep = np.exp(mixtures @ parameters[1:])[:, None] * mixtures
    return np.concatenate([np.ones((len(mixtures), 1)), steep], axis=1)
