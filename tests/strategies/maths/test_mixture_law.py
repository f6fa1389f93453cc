"""Laws of mixing: a planted law is found again, and the best mixture is the best of a fine grid."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedwinnow.curation.errors import NonFiniteError, PluginError, ProtocolError
from fedwinnow.strategies.maths.mixture_law import (
    MixingLaw,
    MixtureRun,
    best_mixture,
    fit_mixing_law,
)
from fedwinnow.strategies.weighting.mixing_law import mixing_law

SITES = ("a", "b", "c")


def planted(seed: int) -> MixingLaw:
    """A law of three sites and two categories."""
    draw = np.random.default_rng(seed)
    slopes = {name: tuple(draw.uniform(-1.5, 1.0, size=3)) for name in ("law", "medicine")}
    floors = {name: float(draw.uniform(0.3, 1.5)) for name in slopes}
    return MixingLaw(sites=SITES, floors=floors, slopes=slopes, error=0.0)


def runs_of(law: MixingLaw, count: int, seed: int, noise: float = 0.0) -> list[MixtureRun]:
    """Mixtures drawn evenly from the simplex, and what the law says of them."""
    draw = np.random.default_rng(seed)
    found = []
    for weights in draw.dirichlet(np.ones(len(law.sites)), size=count):
        mixture = dict(zip(law.sites, weights.tolist(), strict=True))
        losses = {k: v + noise * draw.normal() for k, v in law.losses(mixture).items()}
        found.append(MixtureRun(weights=mixture, losses=losses))
    return found


@pytest.mark.flower  # long
@settings(max_examples=12)
@given(seed=st.integers(0, 300))
def test_fit_predicts_mixtures_that_it_has_not_seen(seed):
    """Without noise, 16 runs of three sites predict others to 1 % of their spread, or 1e-3."""
    law = planted(seed)
    fitted = fit_mixing_law(runs_of(law, 16, seed))
    fresh = runs_of(law, 40, seed + 1)
    for name in law.slopes:
        true = np.array([run.losses[name] for run in fresh])
        said = np.array([fitted.losses(run.weights)[name] for run in fresh])
        assert np.abs(said - true).max() < max(1e-3, 0.01 * np.ptp(true))


def test_fit_says_how_far_it_is_from_what_was_measured():
    """The error of a fit to noisy losses is the noise, within a half."""
    law = planted(3)
    fitted = fit_mixing_law(runs_of(law, 60, 5, noise=0.01))
    assert fitted.error == pytest.approx(0.01, rel=0.5)


@given(seed=st.integers(0, 300), least=st.sampled_from([0.0, 0.05, 0.2]))
def test_best_mixture_is_the_best_of_a_fine_grid(seed, least):
    """No point of a grid within the bounds has a smaller expected mean loss."""
    law, most = planted(seed), 0.7
    best = best_mixture(law, least=least, most=most)
    assert sum(best.values()) == pytest.approx(1.0)
    assert all(least - 1e-9 <= weight <= most + 1e-9 for weight in best.values())

    def mean(weights):
        return np.mean([*law.losses(weights).values()])

    steps = np.linspace(0, 1, 41)
    for first, second in itertools.product(steps, steps):
        point = (first, second, 1 - first - second)
        if all(least <= value <= most for value in point):
            assert mean(best) <= mean(dict(zip(SITES, point, strict=True))) + 1e-6


def test_mixing_law_weighs_by_the_best_mixture_of_who_is_there():
    """Weights are those of the law; a missing site leaves its weight in proportion."""
    law = planted(7)
    tables = [{"weights": dict(r.weights), "losses": dict(r.losses)} for r in runs_of(law, 16, 1)]
    weigh = mixing_law(runs=tables)
    whole = weigh(dict.fromkeys(SITES, 5))
    expected = best_mixture(law, least=0.02, most=0.6)
    assert whole == pytest.approx(expected, abs=0.02)
    part = weigh({"a": 5, "b": 5, "c": 0})
    assert part["a"] / part["b"] == pytest.approx(whole["a"] / whole["b"])
    with pytest.raises(PluginError, match="'d'"):
        weigh({"a": 1, "d": 1})


def test_mixing_law_names_what_is_wrong_with_its_runs():
    """Too few runs, other sites, a NaN, a missing table and impossible bounds are named."""
    law = planted(1)
    runs = runs_of(law, 6, 1)
    with pytest.raises(ProtocolError, match="at least 5 runs"):
        fit_mixing_law(runs[:4])
    with pytest.raises(ProtocolError, match="run 2"):
        fit_mixing_law([runs[0], MixtureRun(weights={"a": 1.0}, losses={}), *runs[2:]])
    broken = MixtureRun(weights=runs[0].weights, losses={"law": float("nan"), "medicine": 1.0})
    with pytest.raises(NonFiniteError, match="run 1"):
        fit_mixing_law([broken, *runs[1:]])
    with pytest.raises(ProtocolError, match="widen"):
        best_mixture(law, least=0.5, most=0.6)
    with pytest.raises(ValueError, match="weights and losses"):
        mixing_law(runs=[{"weights": {}}])
