import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from fedwinnow.strategies.maths.calibration_model import (
    Recipe,
    Rows,
    choose_ridge,
    cross_validated_logits,
    fit_logistic,
    fit_model,
    fused_logits,
    sigmoid,
)
from fedwinnow.strategies.maths.standardization import (
    POOL,
    fit_standardizer,
    folds_of,
    precision,
    standardizer_from_arrays,
    typicality_of,
)

RECIPE = Recipe(typical=("a", "b"))


def rows_of(seed=0, anchors=24, shift=3.0):
    """Two features that a corruption shifts."""
    rng = np.random.default_rng(seed)
    clean = rng.normal(size=(anchors, 2))
    bad = rng.normal(size=(anchors, 2)) + shift
    fold = np.arange(anchors) % 4
    return Rows(
        names=("a", "b"),
        values=np.concatenate([clean, bad]),
        domains=("x",) * (2 * anchors),
        clean=np.arange(2 * anchors) < anchors,
        folds=np.concatenate([fold, fold]),
    )


def test_logistic_is_that_of_scikit_learn():
    """Oracle: coefficients of a class-balanced ridge logistic equal scikit-learn's."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(80, 3))
    y = x[:, 0] + rng.normal(size=80) > 0.4
    ridge = 0.03
    other = LogisticRegression(
        C=1 / (ridge * len(y)), class_weight="balanced", tol=1e-12, max_iter=1000
    ).fit(x, y)
    beta = fit_logistic(x, y, ridge=ridge)
    np.testing.assert_allclose(beta[:-1], other.coef_[0], atol=1e-5)  # two solvers
    np.testing.assert_allclose(beta[-1], other.intercept_[0], atol=1e-5)  # likewise


def test_logistic_of_separated_classes_is_finite():
    """Edge: where a line parts the classes, the ridge keeps the coefficients finite."""
    beta = fit_logistic(np.array([[-1.0], [1.0]]), np.array([False, True]), ridge=1e-5)
    assert np.isfinite(beta).all()
    assert beta[0] > 0


def test_probability_does_not_overflow():
    """Edge: the logistic of ±1000 is 0 or 1, without a warning."""
    np.testing.assert_allclose(sigmoid(np.array([-1000.0, 0.0, 1000.0])), [0.0, 0.5, 1.0])


def test_distance_is_that_of_mahalanobis():
    """Oracle: typicality squared is zᵀ (C + ρ I)⁻¹ z, sample by sample."""
    rng = np.random.default_rng(2)
    z = rng.normal(size=(30, 3)) @ rng.normal(size=(3, 3))
    inverse = precision(z, ridge=0.1)
    expected = np.linalg.inv(np.corrcoef(z.T) + 0.1 * np.eye(3))
    np.testing.assert_allclose(inverse, expected, rtol=1e-9)  # float64, 3 terms
    slow = [-np.sqrt(row @ expected @ row) for row in z]
    np.testing.assert_allclose(typicality_of(z, inverse), slow, rtol=1e-9)  # float64, 9 terms


def test_precision_of_a_constant_feature_is_finite():
    """Edge: a feature that no anchor varies correlates with none and gives no NaN."""
    z = np.stack([np.linspace(-1, 1, 5), np.zeros(5)], axis=1)
    np.testing.assert_allclose(precision(z, ridge=0.1), np.eye(2) / 1.1, rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.floats(-50, 50), st.floats(0.1, 20))
def test_standard_ignores_offset_and_scale(offset, scale):
    """Law: z of a + b·x is z of x, whatever a and b > 0."""
    rng = np.random.default_rng(3)
    x, domains = rng.normal(size=(12, 2)), ("x", "y") * 6
    one = fit_standardizer(x, domains, names=("a", "b"), shrinkage=4.0)
    moved = offset + scale * x
    other = fit_standardizer(moved, domains, names=("a", "b"), shrinkage=4.0)
    np.testing.assert_allclose(one(x, domains), other(moved, domains), atol=1e-6)


def test_standard_shrinks_between_own_and_pool():
    """Law: κ → 0 gives a domain's own mean, κ → ∞ the pool's where domains differ by chance alone.

    An unknown domain takes the pool.
    """
    x, domains = np.array([[0.0], [3.0], [1.0], [4.0]]), ("x", "x", "y", "y")
    own = fit_standardizer(x, domains, names=("a",), shrinkage=1e-9)
    pool = fit_standardizer(x, domains, names=("a",), shrinkage=1e9)
    np.testing.assert_allclose(own.mean["x"], [1.5], atol=1e-6)
    np.testing.assert_allclose(pool.mean["x"], [2.0], atol=1e-6)
    np.testing.assert_allclose(own(np.array([[2.0]]), ("z",)), [[0.0]], atol=1e-12)
    np.testing.assert_array_equal(own.mean[POOL], [2.0])


def test_standard_keeps_distant_domains_apart():
    """Law: domains that lie many spreads apart keep their own means, however large κ."""
    x, domains = np.array([[0.0], [1.0], [1000.0], [1001.0]]), ("x", "x", "y", "y")
    found = fit_standardizer(x, domains, names=("a",), shrinkage=1e9)
    np.testing.assert_allclose(found.mean["x"], [0.5], atol=1e-2)


def test_standard_leaves_missing_values_out():
    """Law: a NaN changes no mean, and becomes z = 0."""
    x = np.array([[1.0], [3.0], [np.nan]])
    standard = fit_standardizer(x, ("x",) * 3, names=("end_loss",), shrinkage=1.0)
    np.testing.assert_allclose(standard.mean["x"], [2.0])
    assert standard(x, ("x",) * 3)[2, 0] == 0.0


def test_standard_survives_its_arrays():
    """Equivalence: the figures as arrays and back are the same."""
    standard = fit_standardizer(np.eye(3), ("x", "y", ""), names=("a", "b", "c"), shrinkage=1.0)
    back = standardizer_from_arrays(standard.arrays() | {"beta": np.zeros(2)})
    assert back.mean.keys() == standard.mean.keys()
    for key, value in standard.spread.items():
        np.testing.assert_array_equal(back.spread[key], value)


def test_folds_hold_every_copy_of_a_parent():
    """Law: a parent's rows share one fold, in any order, and each domain is spread over all."""
    parents = [f"p{i}" for i in range(12)] * 3
    domains = ["x" if i % 12 < 6 else "y" for i in range(36)]
    folds = folds_of(parents, domains, 3)
    assert folds[:12] == folds[12:24] == folds[24:]
    assert [folds[:6].count(k) for k in range(3)] == [2, 2, 2]
    assert folds_of(parents[::-1], domains[::-1], 3) == folds[::-1]


def test_held_out_score_ignores_its_own_fold():
    """Law: what a fold's rows are called changes no score of that fold."""
    rows = rows_of(shift=1.0)
    here = rows.folds == 1
    other = Rows(
        names=rows.names,
        values=rows.values,
        domains=rows.domains,
        clean=np.where(here, ~rows.clean, rows.clean),
        folds=rows.folds,
    )
    one, two = (cross_validated_logits(each, RECIPE, ridge=0.1) for each in (rows, other))
    np.testing.assert_array_equal(one[here], two[here])


def test_ridge_is_strong_where_nothing_can_be_told():
    """Law: for rows without signal the strongest ridge wins."""
    ridge, scores = choose_ridge(rows_of(shift=0.0), RECIPE)
    assert ridge == 0.3
    assert scores.shape == (48,)


@pytest.mark.parametrize("safeguard", [0.0, 0.5, 1.0])
def test_fused_orders_clean_above_corrupted(safeguard):
    """Law: whatever the weight, separated classes are told apart."""
    rows = rows_of(shift=5.0)
    recipe = Recipe(typical=("a", "b"), safeguard=safeguard)
    model = fit_model(rows, recipe, ridge=0.03)
    found = fused_logits(model, rows.values, rows.domains, names=rows.names, recipe=recipe)
    assert found[rows.clean].min() > found[~rows.clean].max()


def test_safeguard_lowers_what_no_corruption_foresaw():
    """Law: fitted on shifts to one side only, the far other side still scores below the clean."""
    rows = rows_of(shift=3.0)
    model = fit_model(rows, RECIPE, ridge=0.03)
    far = np.full((1, 2), -7.0)
    found = fused_logits(model, far, ("x",), names=rows.names, recipe=RECIPE)
    clean = fused_logits(
        model, rows.values[rows.clean], ("x",) * 24, names=rows.names, recipe=RECIPE
    )
    assert found[0] < np.quantile(clean, 0.05)
