"""Laws of ranking figures."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.curation.errors import NonFiniteError, RunError
from fedwinnow.curation.scores.ranking_metrics import (
    auroc,
    auroc_within,
    standard_error,
)

PAIRS = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30).filter(
    lambda pairs: 0 < sum(p for _, p in pairs) < len(pairs)
)


@given(pairs=PAIRS)
def test_auroc_equals_counting_pairs(pairs):
    """Wins plus half the ties over all (positive, negative) pairs."""
    scores = np.array([float(s) for s, _ in pairs])
    positive = np.array([p for _, p in pairs])
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a in scores[positive]
        for b in scores[~positive]
    ]
    assert auroc(scores, positive) == pytest.approx(np.mean(wins))
    assert auroc(-scores, positive) == pytest.approx(1 - np.mean(wins))


def test_auroc_refuses_one_class_and_nan():
    """Undefined cases are named, not guessed."""
    with pytest.raises(RunError, match="both classes"):
        auroc(np.ones(3), np.ones(3, dtype=bool))
    with pytest.raises(NonFiniteError):
        auroc(np.array([np.nan, 1.0]), np.array([True, False]))


def test_auroc_within_ignores_offsets_between_groups():
    """A constant added to one group changes the pooled figure and not the one within."""
    scores = np.array([1.0, 0.0, 1.0, 0.0])
    positive = np.array([True, False, True, False])
    groups = ["a", "a", "b", "b"]
    shifted = scores + np.array([0, 0, 5, 5])
    assert auroc_within(shifted, positive, groups) == auroc_within(scores, positive, groups) == 1.0
    assert auroc(shifted, positive) < 1.0
    assert auroc_within(scores[:1], positive[:1], ["a"]) is None


def test_standard_error_shrinks_with_samples():
    """Four times the samples, about half the error; certain ranking has none."""
    assert standard_error(0.8, 200, 200) == pytest.approx(standard_error(0.8, 50, 50) / 2, rel=0.05)
    assert standard_error(1.0, 10, 10) == 0.0
