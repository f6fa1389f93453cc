"""Laws of selections."""

import numpy as np
import pytest

from fedwinnow.curation.datatypes import Status
from fedwinnow.curation.errors import NonFiniteError
from fedwinnow.curation.scores.selection import keep_all, oracle, random_like, select_above

IDS = ("a", "b", "c", "d")
SCORES = np.array([0.2, 0.5, np.nan, 0.9])
STATUS = np.array([Status.OK, Status.OK, Status.NO_TARGET, Status.OK], dtype=np.int8)


def test_select_keeps_ties_and_says_why_not():
    """At the threshold is kept; each dropped sample has its reason."""
    found = select_above(IDS, SCORES, STATUS, 0.5)
    assert found.kept == (False, True, False, True)
    assert found.reasons[0].startswith("score 0.2 is below")
    assert found.reasons[2] == "no target token"
    assert found.reasons[1] == ""


def test_select_at_minus_infinity_keeps_all_measurable():
    """keep-all still leaves out what cannot be trained on."""
    assert select_above(IDS, SCORES, STATUS, float("-inf")).kept == keep_all(IDS, STATUS).kept


def test_select_may_keep_nothing():
    """Zero kept is a selection, not an error."""
    assert select_above(IDS, SCORES, STATUS, float("inf")).count == 0
    assert select_above((), np.zeros(0), np.zeros(0, dtype=np.int8), 0.0).count == 0


def test_select_says_a_reason_for_exactly_the_dropped():
    """Every dropped sample has one; a NaN score is no score."""
    scores = np.array([0.2, np.nan, np.nan, 0.9])
    status = np.array([0, 0, Status.NON_FINITE, 0], dtype=np.int8)
    found = select_above(IDS, scores, status, 0.5)
    assert found.kept == (False, False, False, True)
    assert found.reasons[1:] == ("no score", "not finite", "")
    for one in (found, keep_all(IDS, STATUS), oracle(IDS, ("clean", "cut") * 2, STATUS)):
        assert [not reason for reason in one.reasons] == list(one.kept)


def test_select_refuses_nan_threshold():
    """A threshold that is no number would keep everything in silence."""
    with pytest.raises(NonFiniteError, match="NaN"):
        select_above(IDS, SCORES, STATUS, float("nan"))


def test_random_like_keeps_the_same_count_and_repeats():
    """As many as the selection, never an unmeasurable one, equal for equal seeds."""
    curated = select_above(IDS, SCORES, STATUS, 0.5)
    for seed in range(20):
        found = random_like(curated, STATUS, seed=seed)
        assert found.count == curated.count
        assert not found.kept[2]
        assert found == random_like(curated, STATUS, seed=seed)


def test_oracle_keeps_exactly_the_clean():
    """Planted truth decides."""
    found = oracle(IDS, ("clean", "swap", "clean", "clean"), STATUS)
    assert found.kept == (True, False, False, True)
    assert found.reasons[1] == "planted as corrupted"
