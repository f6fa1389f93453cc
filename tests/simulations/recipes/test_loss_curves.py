"""Laws of loss curves: their common shape, their ends, and the ranking of recipes."""

import numpy as np
import pytest

from fedwinnow.curation.errors import NonFiniteError, ProtocolError
from fedwinnow.simulations.recipes.loss_curves import (
    LINE,
    SHAPES,
    choose_shape,
    clearly_worse,
    fitted_ends,
    late_checkpoints,
    rank_recipes,
)

STEPS = np.arange(1.0, 11.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_curve_of_a_shape_is_found_and_its_end_is_exact(shape):
    """A noiseless y = d + a·t^γ gives γ and its own last value, for each recipe with d and a."""
    curves = np.stack([d + a * STEPS**shape for d, a in ((2.0, 0.5), (1.0, -0.2), (3.0, 0.1))])
    assert choose_shape(STEPS, curves) == shape
    found = fitted_ends(STEPS, curves[None].transpose(0, 2, 1), shape)
    assert found == pytest.approx(curves[None, :, -1])


def test_curve_is_a_line_unless_another_shape_foretells_better():
    """Noise alone makes no power law, and a constant or few checkpoints none either."""
    random = np.random.default_rng(0)
    lines = 2.0 - 0.01 * STEPS + 0.002 * random.normal(size=(20, 10))
    assert choose_shape(STEPS, lines) == LINE
    assert choose_shape(STEPS, np.full((2, 10), 1.5)) == LINE
    assert choose_shape(STEPS[:3], lines[:, :3]) == LINE


def test_end_of_a_noisy_line_is_surer_than_its_last_point():
    """Checkpoints before the last take part: the error falls."""
    random = np.random.default_rng(1)
    curves = (2.0 - 0.01 * STEPS)[None, :, None] + 0.1 * random.normal(size=(1, 10, 2000))
    errors = fitted_ends(STEPS, curves, LINE) - 1.9
    assert errors.std() < 0.7 * (curves[:, -1] - 1.9).std()


def test_late_checkpoints_are_those_after_the_first_tenth():
    """Of 100 steps those above 10; of few steps all but none are lost."""
    assert late_checkpoints((1, 5, 10, 11, 50, 100)).tolist() == [3, 4, 5]
    assert late_checkpoints((1, 2, 4)).tolist() == [0, 1, 2]


def table(mean, seed, seeds=3, items=40):
    """Losses: the same items and seeds in every recipe, a little noise of each one's own."""
    random = np.random.default_rng(99)
    common = random.normal(size=(1, items)) + 0.1 * random.normal(size=(seeds, 1))
    return mean + common + 0.02 * np.random.default_rng(seed).normal(size=(seeds, items))


def test_ranking_separates_what_pairing_shows():
    """Items differ by 1, recipes by 0.02: paired, the order is certain and clear of the best."""
    placed = rank_recipes({"b": table(2.02, 1), "c": table(2.05, 2), "a": table(2.0, 3)}, seed=0)
    assert [one.name for one in placed] == ["a", "b", "c"]
    assert placed[0].difference == placed[0].low == placed[0].high == 0.0
    assert clearly_worse(placed) == {"b", "c"}
    assert not any(one.tied for one in placed)


def test_ranking_of_equals_keeps_the_order_given_and_says_so():
    """Equal recipes: the first stays first, the others are tied with it, none is hopeless."""
    same = table(2.0, 1)
    placed = rank_recipes({"z": same, "a": same, "m": same.copy()}, seed=0)
    assert [one.name for one in placed] == ["z", "a", "m"]
    assert [one.tied for one in placed] == [False, True, True]
    assert not clearly_worse(placed)


def test_ranking_of_one_recipe_is_itself():
    """Nothing to compare: it is the best, tied with nobody."""
    (only,) = rank_recipes({"only": table(2.0, 1)}, seed=0)
    assert (only.name, only.difference, only.tied) == ("only", 0.0, False)


def test_ranking_compares_over_the_seeds_that_both_have():
    """A recipe that stopped early is judged on its own seeds, not against others' luckier ones."""
    long = table(2.0, 1, seeds=4)
    long[2:] += 5.0  # hard seeds that the other never saw
    placed = rank_recipes({"long": long, "short": table(2.1, 2, seeds=4)[:2]}, seed=0)
    assert [one.name for one in placed] == ["long", "short"]
    assert placed[1].difference == pytest.approx(0.1, abs=0.02)
    assert [one.seeds for one in placed] == [4, 2]


def test_ranking_refuses_a_nan_by_name():
    """NaN or infinity in one recipe is an error that names it; one that all lack is no loss."""
    good = table(2.0, 1)
    for bad in (np.nan, np.inf):
        spoiled = table(2.0, 2)
        spoiled[1, 3] = bad
        with pytest.raises(NonFiniteError, match="'spoiled'"):
            rank_recipes({"good": good, "spoiled": spoiled}, seed=0)
    hole = good.copy()
    hole[1, 3] = np.nan
    assert not rank_recipes({"a": hole, "b": hole}, seed=0)[0].difference
    with pytest.raises(NonFiniteError, match="'a'"):
        rank_recipes({"a": np.full((1, 2), np.nan)}, seed=0)
    with pytest.raises(ProtocolError):
        rank_recipes({}, seed=0)
