"""Laws of the bounds on what a stranger sends: counts, losses, sizes and texts."""

import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from fake_federation import SITES, FakeSites, make_config, run_until
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.curation.datatypes import ScoreSummary
from fedwinnow.curation.errors import ProtocolError
from fedwinnow.server.phases import select
from fedwinnow.server.phases.limits import (
    LONGEST,
    MOST_LOSS,
    clean_line,
    clean_text,
    hold_to_count,
    why_no_losses,
    why_too_full,
)
from fedwinnow.server.run import fold


@given(st.text(max_size=40))
def test_clean_text_keeps_what_is_harmless_and_nothing_else(text):
    """Law: no control or format character is left; a text without any comes back; twice is once."""
    found = clean_text(text)
    harmful = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert not {unicodedata.category(c) for c in found if c not in "\n\t"} & harmful
    assert clean_text(found) == found
    if not {unicodedata.category(c) for c in text if c not in "\n\t"} & harmful:
        assert found == text
    assert "\n" not in clean_line(text)


def test_clean_text_is_bounded():
    """Edge: a text of any length is shown at a bounded one."""
    assert len(clean_text("x" * 10 * LONGEST)) == LONGEST + 1


@given(st.integers(1, 10**6), st.integers(1, 50))
def test_rounding_of_honest_sites_is_within_the_bound(samples, step):
    """Law: an exact total is never refused against its own rounded count."""
    joined = max(step, round(samples / step) * step)
    summary = ScoreSummary(edges=np.array([0.5]), counts=np.array([samples / 2, samples / 2]))
    assert why_too_full(summary, 0, joined) == ""
    held = hold_to_count(summary, joined)
    assert held.total <= joined * (1 + 1e-12)
    assert held.total == pytest.approx(min(samples, joined))


def test_losses_are_numbers_of_losses():
    """Edge: 0 and the bound are losses; below, beyond and NaN are none."""
    assert why_no_losses((0.0, MOST_LOSS), "losses") == ""
    for wrong in (-1e-9, MOST_LOSS * 1.01, float("nan"), float("inf")):
        assert "no loss" in why_no_losses((1.0, wrong), "losses")


@pytest.mark.parametrize("error", [OverflowError, np.linalg.LinAlgError, ZeroDivisionError])
def test_reply_that_breaks_the_fold_costs_its_own_site_only(monkeypatch, error):
    """Law: whatever one reply does to the fold, the run goes on as if its site were missing."""
    plain = select.absorb

    def breaks(state, config, replies, record):
        if SITES[1] in replies:
            raise error("x")  # noqa: EM101 - no words matter
        return plain(state, config, replies, record)

    before = run_until(make_config(), "select", FakeSites())
    request = fold.next_request(before)
    replies = {site: FakeSites().answer(site, request) for site in SITES}
    others = {site: reply for site, reply in replies.items() if site != SITES[1]}
    expected = fold.absorb(before, others, {SITES[1]: "away"})
    monkeypatch.setitem(fold.PHASES, fold.Phase.SELECT, replace(select.PHASE, absorb=breaks))
    found = fold.absorb(before, replies)
    assert found.kept == expected.kept
    assert error.__name__ in found.records[-1].missing[SITES[1]]
    assert set(found.records[-1].missing) == {SITES[1]}


def test_verdicts_on_the_whole_run_stand(monkeypatch):
    """Edge: too few sites is no fault of one reply, and a fault of none is raised as it is."""
    before = run_until(make_config(), "select", FakeSites())
    replies = {site: FakeSites().answer(site, fold.next_request(before)) for site in SITES}
    for error in (ProtocolError, OverflowError):

        def breaks(*_, error=error):
            raise error("x")  # noqa: EM101 - no words matter

        monkeypatch.setitem(fold.PHASES, fold.Phase.SELECT, replace(select.PHASE, absorb=breaks))
        with pytest.raises(error):
            fold.absorb(before, replies)
