"""Laws of the guards on counts and histograms: one liar cannot move what the middle says."""

from dataclasses import replace

import numpy as np
import pytest
from fake_federation import SITES, FakeSites, make_config, replies_to, run_until
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.curation.config.coordinator import GuardsSection
from fedwinnow.curation.config.scoring import PluginSection
from fedwinnow.curation.datatypes import ScoreSummary
from fedwinnow.curation.errors import ConfigError
from fedwinnow.curation.scores.histogram import merge_summaries, quantile
from fedwinnow.server.aggregation.count_guards import bound_counts, median_summaries
from fedwinnow.server.run.fold import absorb, next_request

EDGES = np.linspace(0.0, 1.0, 8)
counts = st.lists(st.integers(0, 20), min_size=9, max_size=9)


def summary(cells) -> ScoreSummary:
    return ScoreSummary(edges=EDGES, counts=np.asarray(cells, dtype=np.float64))


@given(cells=st.lists(counts, min_size=1, max_size=6))
def test_middle_summaries_is_the_median_of_cumulative_shares(cells):
    """Against a slow median, edge by edge; every site keeps its own total, no cell is negative."""
    federation = {f"s{i}": summary(one) for i, one in enumerate(cells)}
    found = median_summaries(federation)
    known = [one for one in federation.values() if one.total > 0]
    assert {site: one.total for site, one in found.items()} == pytest.approx(
        {site: one.total for site, one in federation.items()}
    )
    for site, one in found.items():
        if federation[site].total == 0:
            assert one is federation[site]
            continue
        assert (one.counts >= -1e-9).all()
        for cell in range(9):
            below = sorted(sum(other.counts[: cell + 1]) / other.total for other in known)
            middle = (below[(len(below) - 1) // 2] + below[len(below) // 2]) / 2
            assert sum(one.counts[: cell + 1]) / one.total == pytest.approx(middle)


@given(honest=counts.filter(any), lie=counts.filter(any), sites=st.integers(3, 7))
def test_middle_summaries_of_alike_sites_hear_no_single_liar(honest, lie, sites):
    """Two or more honest sites of one shape and a liar of any: the shape stays theirs."""
    federation = {f"s{i}": summary(honest) for i in range(sites - 1)} | {"liar": summary(lie)}
    told = merge_summaries(median_summaries(federation).values())
    assert np.allclose(told.counts / told.total, summary(honest).counts / summary(honest).total)


def test_middle_summaries_holds_a_threshold_that_a_sum_gives_away():
    """Inflation of one site in eight moves the pooled quantile up, and the median's not at all."""
    cells = [0, 1, 2, 3, 4, 3, 2, 1, 0]
    federation = {f"s{i}": summary(cells) for i in range(8)}
    before = quantile(merge_summaries(federation.values()), 0.5)
    federation["s7"] = summary([0] * 8 + [64])
    assert quantile(merge_summaries(federation.values()), 0.5) > before + 0.05
    told = merge_summaries(median_summaries(federation).values())
    assert quantile(told, 0.5) == pytest.approx(before)


def test_middle_summaries_bounds_the_rank_error_by_the_widest_run():
    """The largest merged run of any site, as a share of its samples, stands for every site."""
    narrow = replace(summary([1] * 9), largest_merged=2.0)
    wide = replace(summary([2] * 9), largest_merged=9.0)
    found = median_summaries({"a": narrow, "b": wide})
    assert found["a"].largest_merged == pytest.approx(4.5)
    assert found["b"].largest_merged == pytest.approx(9.0)


def test_bound_counts_cuts_an_outlier_to_the_median_share():
    """Kept shares of 1/2, 1/2, 1/4 and 1 with a bound of 1.5 medians: the last counts 3/4."""
    kept, words = bound_counts(
        {"a": 5, "b": 10, "c": 5, "d": 40, "none": 0},
        {"a": 10, "b": 20, "c": 20, "d": 40, "none": 9},
        most=1.5,
    )
    assert kept == {"a": 5, "b": 10, "c": 5, "d": 30, "none": 0}
    assert set(words) == {"d"}
    assert "40 samples" in words["d"]
    assert bound_counts({"none": 0}, {"none": 9}, most=1.0) == ({"none": 0}, {})


def test_guards_on_counts_stand_in_the_round_record():
    """A site that trains on all while others keep less is bounded by name, and weighs less."""
    shares = {"alpha": 8, "beta": 4, "gamma": 4}
    keeps = FakeSites(kept=dict.fromkeys(("curated", "keep_all", "random"), shares))
    weights = {}
    for most in (0.0, 1.0):
        config = make_config(guards=GuardsSection(kept_share=most))
        state = run_until(config, "train", keeps)
        state = absorb(state, replies_to(next_request(state), keeps))
        weights[most] = {site: one.weight for site, one in state.records[-1].sites.items()}
        told = {site for site, one in state.records[-1].sites.items() if one.bounded}
        assert told == ({"alpha"} if most else set())
    assert weights[0.0]["alpha"] == pytest.approx(1 / 2)
    assert weights[1.0]["alpha"] == pytest.approx(1 / 3)


def test_guards_on_summaries_give_the_rule_the_median():
    """One of three sites inflates: keep_fraction follows the sum, and not the median."""

    def inflated(site, _, reply):
        lies = site == SITES[0] and reply.header.phase == "score"
        if not lies:
            return reply
        cells = np.zeros_like(reply.summary.counts)
        cells[-1] = 8.0
        return replace(reply, summary=replace(reply.summary, counts=cells))

    liars = FakeSites(alter=inflated)
    rule = PluginSection(name="keep_fraction", settings={"share": 0.6})
    found = {}
    for how in ("sum", "median"):
        config = make_config(threshold=rule, guards=GuardsSection(summaries=how))
        found[how] = run_until(config, "select", liars).decision.value
    assert found["median"] < found["sum"]
    with pytest.raises(ConfigError, match=r"guards\.kept_share"):
        GuardsSection(kept_share=-1.0)
