"""Laws of scorer committee: quality by the mean, doubt by the spread, both by domain."""

from dataclasses import replace

import numpy as np
import pytest

from fedwinnow.curation.datatypes import PublicRows, SignalTable, Status
from fedwinnow.curation.errors import PluginError
from fedwinnow.curation.scores.selection import QUEUED, select_above
from fedwinnow.strategies.interfaces.scorer import QueueingScorer
from fedwinnow.strategies.scorers.committee import committee
from fedwinnow.strategies.scorers.perplexity import perplexity


def table(mean, level, spread, domains, status=None):
    """A last checkpoint with reviews."""
    return SignalTable(
        ids=tuple(f"r{i}" for i in range(len(mean))),
        domains=tuple(domains),
        checkpoint=1,
        status=np.zeros(len(mean), np.int8) if status is None else np.array(status, np.int8),
        columns={
            "review_mean": np.array(mean, np.float32),
            "review_level": np.array(level, np.float32),
            "review_spread": np.array(spread, np.float32),
        },
    )


def public(seed=0, number=60):
    """Clean rows of two domains, one of them far more spread out, and corrupted ones."""
    draw = np.random.default_rng(seed)
    wide = np.arange(number) % 2
    excess = draw.normal(size=number) * (1 + 3 * wide)
    kinds = ["swap" if i % 5 == 0 else "clean" for i in range(number)]
    mean = 3 + 2 * wide + excess + 5 * np.array([kind == "swap" for kind in kinds])
    spread = np.abs(draw.normal(size=number)) * (0.1 + wide)
    rows = table(mean, 3 + 2 * wide, spread, ["ab"[w] for w in wide])
    first = replace(rows, checkpoint=0, columns={})
    return PublicRows(
        trajectory=(first, rows), kinds=tuple(kinds), parents=tuple(map(str, range(number)))
    )


def test_committee_score_is_the_excess_in_the_domain_s_own_spread():
    """s = (level − mean) / σ_d: equal excess counts less where clean rows vary more."""
    scorer, rows = committee(), public()
    fitted = scorer.fit(rows)
    spread = {d: float(fitted.parameters[f"spread:{d}"][0]) for d in ("a", "b", "")}
    new = table([4.0, 4.0, 4.0, 2.0], [3.0] * 4, [0.0] * 4, "abza")
    expected = [-1 / spread["a"], -1 / spread["b"], -1 / spread[""], 1 / spread["a"]]
    assert np.allclose(scorer.score((new,), fitted), expected, rtol=1e-6)
    assert spread["b"] > 2 * spread["a"]
    assert fitted.forecast["auroc_swap"] > 0.8


def test_committee_queues_the_share_of_clean_rows_that_was_asked():
    """By domain, at most ``doubtful`` of the clean rows, up to one row; 0 asks about none."""
    rows = public(number=200)
    clean = np.array([kind == "clean" for kind in rows.kinds])
    for share in (0.1, 0.25):
        scorer = committee(doubtful=share)
        queued = scorer.queue(rows.trajectory, scorer.fit(rows))
        for domain in "ab":
            here = clean & (np.array(rows.trajectory[-1].domains) == domain)
            assert abs(queued[here].sum() - share * here.sum()) <= 1
    scorer = committee(doubtful=0.0)
    assert not scorer.queue(rows.trajectory, scorer.fit(rows)).any()
    assert isinstance(scorer, QueueingScorer)
    assert not isinstance(perplexity(), QueueingScorer)


def test_committee_rule_keeps_drops_and_asks():
    """High mean and low spread keep; low mean drops, whatever the spread; else one is asked."""
    scorer = committee()
    fitted = scorer.fit(public())
    new = table([3.0, 3.0, 9.0, 9.0], [3.0] * 4, [0.0, 9.0, 0.0, 9.0], "aaaa")
    scores, queued = scorer.score((new,), fitted), scorer.queue((new,), fitted)
    chosen = select_above(new.ids, scores, new.status, -1.0, queued=queued)
    assert chosen.kept == (True, False, False, False)
    assert chosen.reasons[1] == QUEUED
    assert all(reason.startswith("score ") for reason in chosen.reasons[2:])
    assert select_above(new.ids, scores, new.status, -1.0).count == 2


def test_committee_small_domain_takes_the_limit_of_all():
    """A domain with fewer than 1/doubtful clean rows has no limit of its own."""
    fitted = committee(doubtful=0.01).fit(public())
    assert {name for name in fitted.parameters if name.startswith("limit:")} == {"limit:"}


def test_committee_edges():
    """No clean row, no reviews, no row, a status that is not OK: an error with a cure, or NaN."""
    scorer, rows = committee(), public()
    fitted = scorer.fit(rows)
    bad = table([np.nan, 3.0], [np.nan, 3.0], [np.nan, 0.0], "aa", [Status.NON_FINITE, Status.OK])
    assert np.isnan(scorer.score((bad,), fitted)).tolist() == [True, False]
    assert scorer.queue((bad,), fitted).tolist() == [False, False]
    assert scorer.score((table([], [], [], ""),), fitted).shape == (0,)
    with pytest.raises(PluginError, match=r"anchors\.calibration"):
        scorer.fit(replace(rows, kinds=("swap",) * 60))
    with pytest.raises(PluginError, match="review_"):
        scorer.score((rows.trajectory[0],), fitted)
    with pytest.raises(ValueError, match="doubtful"):
        committee(doubtful=1.0)
