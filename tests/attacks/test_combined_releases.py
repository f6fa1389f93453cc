"""Releases whose sum or difference would be of one sample."""

from itertools import combinations

import pytest
from policy_silo import Silo, join, refused, score, summary

pytestmark = pytest.mark.attacks


def test_four_histograms_do_not_combine_to_one_sample(tmp_path, caplog):
    """Law: H(D3) - H(D1) - H(D2) + H(D0) would be one sample; the fourth is refused.

    Every pair differs by ``min_change`` samples or more, so pairs alone would let it out.
    """
    silo = Silo(tmp_path, min_change=50, summaries=9)
    base, one, two = range(200), range(200, 250), range(250, 300)
    sets = [{*base}, {*base, *one}, {*base, *two}, {*base, *one, *two, 999}]
    assert min(len(a ^ b) for a, b in combinations(sets, 2)) >= 50
    for number, ids in enumerate(sets[:3]):
        run = f"run-{number}"
        silo.give(score(run), summary(run), silo.work(run, ids=sorted(ids)))
    silo.enact(min_change=50, summaries=9)
    fourth = silo.work("fourth", ids=sorted(sets[3]), anchors="other")
    for request in (join("fourth"), score("fourth", kinds=("cut",))):
        words = refused("policy.min_change", silo.ask, request, fourth)
        assert "of 1 samples" not in words
    assert "would be of 1 samples" in caplog.text
    ninth = silo.work("ninth", ids=sorted(sets[3] - {999}))
    silo.give(score("ninth"), summary("ninth"), ninth)
    silo.ledger.close()
