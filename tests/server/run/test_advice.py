"""Laws of the remarks: what a person should know of a run that nothing refused."""

from dataclasses import replace

import pytest
from fake_federation import make_config

from fedwinnow.curation.config.coordinator import GuardsSection
from fedwinnow.curation.config.scoring import AdapterSection, PluginSection
from fedwinnow.curation.config.site import SiteSection
from fedwinnow.curation.errors import ConfigError
from fedwinnow.server.run.advice import run_remarks, selection_warnings, sites_without_adapter
from fedwinnow.server.run.preflight import check_plan
from fedwinnow.server.state import RoundRecord, SiteRound


def train(number: int, arm: str = "curated", **weights: float) -> RoundRecord:
    """A training round with the weights of its sites."""
    sites = {
        site: SiteRound(samples=9, weight=weight, losses=()) for site, weight in weights.items()
    }
    return RoundRecord(phase="train", round=number, arm=arm, sites=sites)


WEAK_CASES = [
    ({"auroc": 0.9}, {"inseparable": 0.0}, True, ()),
    ({}, {}, True, ()),
    ({"auroc": 0.65, "auroc_se": 0.1}, {"inseparable": 1.0}, True, ("0.650 ± 0.100", "nothing is")),
    ({"auroc": 0.7, "inseparable": 1.0}, {}, False, ("cannot tell", "little better than chance")),
    ({"auroc": 0.59}, {"inseparable": 0.0}, False, ("hardly tells", "0.590", "take more anchors")),
    ({"auroc": 0.6}, {}, False, ()),
]


@pytest.mark.parametrize(("forecast", "evidence", "kept_all", "words"), WEAK_CASES)
def test_a_scorer_that_tells_nothing_apart_is_said(forecast, evidence, kept_all, words):
    """Law: with what it means for the selection and what to change; a good scorer gets no word."""
    found = selection_warnings("calibrated", forecast, evidence, kept_all=kept_all)
    assert len(found) == bool(words)
    assert all(word in found[0] for word in words)


def test_remarks_name_each_site_whose_adapter_was_not_merged():
    """By arm, with how often; a site that was away is told of elsewhere, a warm-up is no matter."""
    warm_up = RoundRecord(
        phase="warm_up", round=1, arm="", sites={"law": SiteRound(samples=9, weight=0.0, losses=())}
    )
    records = [warm_up, train(1, law=1.0, med=0.0), train(2, law=1.0, med=0.0), train(3, law=1.0)]
    [said] = sites_without_adapter(records)
    assert said.startswith("med gave no adapter in 2 of 2 rounds of arm curated: ")
    assert len(sites_without_adapter([*records, train(1, arm="random", law=0.0, med=1.0)])) == 2
    assert sites_without_adapter([train(1, law=0.5, med=0.5)]) == ()


def test_remarks_say_where_a_weighting_changes_nothing():
    """A middle of all counts every site alike; the default weighting and Krum are no surprise."""
    guards = GuardsSection(rule="median", liars=1)
    config = make_config(guards=guards, weighting=PluginSection(name="anchor_alignment"))
    [said] = run_remarks(config)
    assert "'median'" in said
    assert "'anchor_alignment' changes nothing" in said
    assert run_remarks(replace(config, weighting=PluginSection(name="samples_kept"))) == ()
    assert run_remarks(replace(config, guards=GuardsSection(rule="krum", liars=1))) == ()


@pytest.mark.parametrize("rule", ["freeze_a", "alternate", "fedsvd"])
def test_run_of_a_shared_factor_refuses_a_smaller_rank_at_once(rule):
    """Before anything is asked of a site; the rules on both factors take it."""
    adapter = AdapterSection(rank=4, alpha=8.0)
    sites = (SiteSection(name="small", data="d.jsonl", rank=2),)
    config = make_config(sites=sites, adapter=adapter, merging=PluginSection(name=rule))
    with pytest.raises(ConfigError, match=rf"sites\.rank = 2 of site 'small'.*'{rule}'"):
        check_plan(config)
    check_plan(replace(config, merging=PluginSection(name="core_svd")))
