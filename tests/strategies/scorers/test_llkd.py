"""Laws of scorer llkd: the paper's rule, fitted on public rows, whatever their order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.curation.datatypes import PublicRows, SignalTable, Status
from fedwinnow.curation.errors import PluginError
from fedwinnow.strategies.scorers.llkd import llkd


def table(confidence, need, domains, status=None):
    """A checkpoint with the two signals."""
    number = len(confidence)
    return SignalTable(
        ids=tuple(f"r{i}" for i in range(number)),
        domains=tuple(domains),
        checkpoint=0,
        status=np.zeros(number, np.int8) if status is None else np.array(status, np.int8),
        columns={
            "teacher_confidence": np.array(confidence, np.float32),
            "student_entropy": np.array(need, np.float32),
        },
    )


def public(confidence, need, domains, kinds=None, status=None):
    """Public rows, all clean unless said."""
    number = len(confidence)
    return PublicRows(
        trajectory=(table(confidence, need, domains, status),),
        kinds=tuple(kinds or ["clean"] * number),
        parents=tuple(f"p{i}" for i in range(number)),
    )


ROWS = public(
    [0.25, 0.5, 0.5, 0.75, 0.0], [0.5, 0.5, 0.25, 0.25, 1.0], "aabbb", ["clean"] * 4 + ["swap"]
)


def test_llkd_thresholds_are_the_paper_s():
    """τ(d) = mean of clean rows, times the domain's mean over the largest; corrupted ones aside."""
    found = llkd().fit(ROWS).parameters
    assert {name: round(float(value), 6) for name, value in found.items()} == {
        "teacher_confidence:": 0.5,
        "teacher_confidence:a": 0.3,
        "teacher_confidence:b": 0.5,
        "student_entropy:": 0.375,
        "student_entropy:a": 0.375,
        "student_entropy:b": 0.1875,
    }


def test_llkd_at_zero_selects_what_passes_both_thresholds():
    """Score ≥ 0 exactly where both are reached, a tie included; the product ranks within."""
    scorer = llkd()
    fitted = scorer.fit(ROWS)
    new = table([0.6, 0.6, 0.4, 0.31, 0.5], [0.2, 0.1, 0.9, 0.375, 0.375], "bbbaz")
    scores = scorer.score((new,), fitted)
    assert (scores >= 0).tolist() == [True, False, False, True, True]  # z takes the pool's
    expected = [0.12, 0.06 - 1, 0.36 - 1, 0.11625, 0.1875]
    assert np.allclose(scores, expected, atol=1e-6)


SHARES = st.floats(0, 1, width=32)


@given(
    st.lists(st.tuples(SHARES, SHARES, st.sampled_from("ab")), min_size=1, max_size=20),
    st.randoms(),
)
def test_llkd_knows_no_order_of_rows_and_stays_in_its_range(rows, draw):
    """Rows in any order give the same thresholds; scores lie in [−1, 1], below 0 if missed."""
    shuffled = list(rows)
    draw.shuffle(shuffled)
    one, other = (
        llkd().fit(public(*map(list, zip(*each, strict=True)))) for each in (rows, shuffled)
    )
    assert one.parameters.keys() == other.parameters.keys()
    for name, value in one.parameters.items():
        assert float(value) == pytest.approx(float(other.parameters[name]), abs=1e-12)
    scores = one.public_scores
    assert ((scores >= -1) & (scores <= 1)).all()
    for (c, u, domain), score in zip(rows, scores, strict=True):
        missed = c < one.parameters[f"teacher_confidence:{domain}"]
        missed |= u < one.parameters[f"student_entropy:{domain}"]
        assert (score < 0) == missed


def test_llkd_without_signals_has_no_score_and_needs_a_clean_row():
    """A row whose status is not OK gets NaN; no clean row with signals is an error with a cure."""
    scorer = llkd()
    bad = table([np.nan, 0.5], [np.nan, 0.5], "aa", [Status.NO_TARGET, Status.OK])
    assert np.isnan(scorer.score((bad,), scorer.fit(ROWS))).tolist() == [True, False]
    with pytest.raises(PluginError, match=r"anchors\.calibration"):
        scorer.fit(public([0.5], [0.5], "a", ["swap"]))
    with pytest.raises(PluginError, match=r"anchors\.calibration"):
        scorer.fit(public([np.nan], [np.nan], "a", status=[Status.NON_FINITE]))
    assert scorer.score((table([], [], ""),), scorer.fit(ROWS)).shape == (0,)
