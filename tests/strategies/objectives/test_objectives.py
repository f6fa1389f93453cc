"""Laws of objectives: the mean of sample losses, the pull of FedProx, and soft weights."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedwinnow.curation.datatypes import SignalTable
from fedwinnow.curation.errors import EmptySelectionError, PluginError
from fedwinnow.strategies.objectives.adapt import adapt
from fedwinnow.strategies.objectives.proximal import proximal
from fedwinnow.strategies.objectives.sft import sft
from fedwinnow.strategies.objectives.weighted import weighted

LOSSES = torch.tensor([1.0, 2.0, 6.0])


def test_sft_is_the_mean_over_samples():
    """Every sample counts the same."""
    assert float(sft()(LOSSES, {}, {})) == 3.0


@given(mu=st.floats(0.0, 100.0), shift=st.floats(-2.0, 2.0))
def test_proximal_adds_half_mu_times_the_squared_distance(mu, shift):
    """L = mean + μ/2 ‖θ − θ_0‖² over all factors."""
    start = {"a": torch.ones(2, 3, dtype=torch.float64), "b": torch.zeros(4, dtype=torch.float64)}
    now = {name: value + shift for name, value in start.items()}
    value = proximal(mu=mu)(LOSSES.double(), now, start)
    assert float(value) == pytest.approx(3.0 + 0.5 * mu * 10 * shift**2)


def test_proximal_gradient_is_mu_times_the_distance():
    """∂L/∂θ = μ (θ − θ_0), and θ_0 gets none."""
    start = {"a": torch.ones(3)}
    now = {"a": torch.tensor([1.0, 2.0, 0.0], requires_grad=True)}
    proximal(mu=4.0)(LOSSES, now, start).backward()
    assert now["a"].grad.tolist() == [0.0, 4.0, -4.0]


def test_proximal_with_mu_zero_is_sft():
    """Without a pull nothing is added, bit for bit."""
    now, start = {"a": torch.ones(3)}, {"a": torch.zeros(3)}
    assert torch.equal(proximal(mu=0.0)(LOSSES, now, start), sft()(LOSSES, now, start))


@pytest.mark.parametrize("mu", [-1.0, float("nan"), float("inf")])
def test_proximal_refuses_mu_out_of_range(mu):
    """μ must be a number of at least 0."""
    with pytest.raises(ValueError, match="at least 0"):
        proximal(mu=mu)


CHANCES = arrays(np.float64, st.integers(1, 30), elements=st.floats(0.001, 1.0) | st.just(np.nan))
COSINES = arrays(
    np.float32,
    st.tuples(st.integers(1, 20), st.integers(1, 3)),
    elements=st.floats(-1.0, 1.0, width=32) | st.just(np.nan),
)


def likeness(cosines):
    """A trajectory that holds these cosines at its last checkpoint, and other ones before."""
    rows = len(cosines)
    tables = [
        SignalTable(
            ids=tuple(map(str, range(rows))),
            domains=("",) * rows,
            checkpoint=checkpoint,
            status=np.zeros(rows, dtype=np.int8),
            columns={"representation": values},
            references=tuple(map(str, range(cosines.shape[1]))),
        )
        for checkpoint, values in enumerate((np.flip(cosines), cosines))
    ]
    return tuple(tables)


def adapted(cosines, **settings):
    """Weights of ``adapt``; scores do not enter."""
    return adapt(**settings).weights(np.full(len(cosines), np.nan), likeness(cosines))


@settings(max_examples=50, deadline=None)
@given(scores=CHANCES)
def test_weighted_is_proportional_to_the_probability_with_mean_one(scores):
    """Mean 1, in proportion to the scores; a NaN counts as the mean one and none comes out."""
    weights = weighted().weights(scores, ())
    known = ~np.isnan(scores)
    assert weights.mean() == pytest.approx(1.0, rel=1e-12)
    assert weights[~known] == pytest.approx(1.0, rel=1e-12)
    if known.any():
        assert weights[known] == pytest.approx(scores[known] / scores[known].mean(), rel=1e-12)


@given(chance=st.floats(1e-300, 1.0), count=st.integers(1, 200))
def test_weighted_with_equal_scores_weighs_exactly_one(chance, count):
    """Equal scores give sft, to float equality."""
    assert (weighted().weights(np.full(count, chance), ()) == 1.0).all()
    assert torch.equal(weighted()(LOSSES, {}, {}), sft()(LOSSES, {}, {}))


def test_weighted_refuses_what_weighs_nothing_or_is_no_probability():
    """All weights 0 and scores outside [0, 1] are named; of no sample there is no weight."""
    with pytest.raises(EmptySelectionError, match="all of 2 kept samples weigh 0"):
        weighted().weights(np.zeros(2), ())
    with pytest.raises(PluginError, match=r"1 of 2 scores outside \[0, 1\]"):
        weighted().weights(np.array([0.5, -0.1]), ())
    assert weighted().weights(np.zeros(0), ()).shape == (0,)


@settings(max_examples=50, deadline=None)
@given(cosines=COSINES, tau=st.floats(0.05, 100.0))
def test_adapt_is_the_sigmoid_of_the_mean_cosine(cosines, tau):
    """The paper's form is σ(s/τ); rescaled it has mean 1; a NaN counts as the mean one."""
    plain, scaled = adapted(cosines, tau=tau, rescale=False), adapted(cosines, tau=tau)
    mean = cosines.astype(np.float64).mean(axis=1)
    known = ~np.isnan(mean)
    expected = 1 / (1 + np.exp(-mean[known] / tau))
    assert plain[known] == pytest.approx(expected, rel=1e-9)
    assert plain[~known] == pytest.approx(expected.mean() if known.any() else 1.0)
    assert scaled.mean() == pytest.approx(1.0, rel=1e-12)
    assert scaled * plain.mean() == pytest.approx(plain, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(cosines=COSINES)
def test_adapt_of_endless_temperature_is_sft(cosines):
    """τ → ∞ weighs alike: exactly 1 at infinity, and in float32 long before."""
    assert (adapted(cosines, tau=float("inf")) == 1.0).all()
    assert (adapted(cosines, tau=1e12).astype(np.float32) == 1.0).all()
    paper = adapted(cosines, tau=float("inf"), rescale=False)
    assert set(paper[~np.isnan(cosines).any(axis=1)].tolist()) <= {0.5}


def test_adapt_survives_the_smallest_temperature():
    """τ → 0 is a cut at cosine 0, without an overflow; τ ≤ 0 and NaN are refused."""
    cosines = np.array([[0.5], [-0.5], [0.0]], dtype=np.float32)
    assert adapted(cosines, tau=1e-320, rescale=False).tolist() == [1.0, 0.0, 0.5]
    for tau in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="above 0"):
            adapt(tau=tau)
