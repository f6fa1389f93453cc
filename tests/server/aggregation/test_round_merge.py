"""Laws of a round's merge: guards are named in the record, changes of the base add up exactly."""

from dataclasses import replace

import pytest
import torch
from fake_federation import (
    SITES,
    FakeSites,
    initial,
    make_config,
    nudged,
    replies_to,
    run_until,
)

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.config.coordinator import GuardsSection, MemberSection
from fedwinnow.curation.config.scoring import PluginSection, ScorerSection
from fedwinnow.curation.config.training import TrainingSection
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import ConfigError, EmptySelectionError, PluginError
from fedwinnow.curation.model.base_change import changed_base_hash, effective_adapter
from fedwinnow.server.aggregation.round_merge import RoundEvidence, check_merging, merge_round
from fedwinnow.server.run.fold import absorb, next_request
from fedwinnow.server.run.preflight import check_plan
from fedwinnow.server.state import RunState
from fedwinnow.strategies.registry import build
from fedwinnow.strategies.run_plugins import MergePlugins


def held_to_guards(config):
    """Check a configuration's own merging plug-ins."""
    check_merging(config, MergePlugins.of(config))


def merging(name: str, **changes):
    """A run with another rule."""
    return make_config(merging=PluginSection(name=name), **changes)


def dense(adapter: Adapter) -> torch.Tensor:
    """ΔW of all modules, flattened."""
    products = [maths.delta(adapter, module) for module in adapter.modules]
    return torch.cat([(one.left @ one.right).flatten() for one in products])


def step(state: RunState, sites: FakeSites | None = None, harmful=()) -> RunState:
    request = next_request(state)
    return absorb(state, replies_to(request, sites or FakeSites(harmful=harmful)))


@pytest.mark.parametrize("rule", ["flora", "fedex"])
def test_merge_rules_that_change_the_base_lose_nothing(rule):
    """Over three rounds the effective update moves by Σ p_i (ΔW_i − ΔW): no energy is lost."""
    state = run_until(merging(rule), "train")
    for number in (1, 2, 3):
        while state.phase != "train":
            state = step(state)
        assert state.round == number
        request = next_request(state)
        replies = replies_to(request)
        before = dense(effective_adapter(state.adapter, state.change))
        start = dense(state.adapter)
        state = absorb(state, replies)
        record = state.records[-1]
        moved = sum(
            one.weight * (dense(replies[site].adapter) - start)
            for site, one in record.sites.items()
            if one.weight > 0
        )
        after = dense(effective_adapter(state.adapter, state.change))
        assert float((after - before - moved).norm() / after.norm()) < 1e-6
        assert state.adapter.base == changed_base_hash("base", state.change)
        assert next_request(state).header.adapter == adapter_hash(next_request(state).adapter)


@pytest.mark.parametrize("rule", ["flora", "fedex"])
def test_merge_evaluates_and_keeps_the_whole(rule):
    """Evaluations and finals are ordinary adapters of the base that the sites joined with."""
    state = run_until(merging(rule), "evaluate")
    for _ in range(4):
        state = step(state)
        while state.phase != "evaluate":
            state = step(state)
        assert next_request(state).adapter.base == "base"
    while state.phase != "done":
        state = step(state)
    assert {one.base for one in state.finals.values()} == {"base"}
    assert state.change is None


def test_merge_asks_for_one_factor_where_the_rule_says_so():
    """freeze_a and fedsvd train B; alternate B, A, B; other rules both; warm-up always both."""
    assert [MergePlugins.of(merging("freeze_a")).frozen_factor(n) for n in (1, 2, 3)] == [
        "a",
        "a",
        "a",
    ]
    assert [MergePlugins.of(merging("alternate")).frozen_factor(n) for n in (1, 2, 3)] == [
        "a",
        "b",
        "a",
    ]
    assert [MergePlugins.of(merging("fedsvd")).frozen_factor(n) for n in (1, 2)] == ["a", "a"]
    assert MergePlugins.of(make_config()).frozen_factor(1) == ""
    assert next_request(run_until(merging("freeze_a"), "warm_up")).frozen == ""
    assert next_request(run_until(merging("freeze_a"), "train")).frozen == "a"


def test_merge_after_judgement_leaves_out_whom_the_others_object_to():
    """Phase judge follows each training round; the record names the site, and its weight is 0."""
    config = make_config(guards=GuardsSection(anchor_margin=0.1))
    state = run_until(config, "train")
    state = step(state)
    assert state.phase == "judge"
    assert set(next_request(state).candidates) == set(SITES)
    honest, blamed = step(state), step(state, harmful=("alpha",))
    trained = blamed.records[-2]
    assert (trained.phase, blamed.records[-1].phase) == ("train", "judge")
    assert trained.sites["alpha"].weight == 0.0
    assert "public anchors" in trained.sites["alpha"].bounded
    assert sum(one.weight for one in trained.sites.values()) == pytest.approx(1.0)
    assert all(one.bounded == "" for one in honest.records[-2].sites.values())
    assert adapter_hash(honest.adapter) != adapter_hash(blamed.adapter)
    assert blamed.pending == {}


def test_merge_of_nobody_is_a_named_error():
    """Where the others object to everybody, the run ends and says why."""
    config = make_config(guards=GuardsSection(anchor_margin=0.1))
    state = step(run_until(config, "train"))
    with pytest.raises(EmptySelectionError, match=r"guards\.anchor_margin"):
        step(state, harmful=SITES)


def test_merge_with_judges_that_object_to_nobody_is_the_plain_merge():
    """Guards that bound nobody change no bit."""
    plain, guarded = make_config(), make_config(guards=GuardsSection(anchor_margin=0.1, norm=1e6))
    one, other = run_until(plain, "done"), run_until(guarded, "done")
    assert adapter_hash(one.finals["curated"]) == adapter_hash(other.finals["curated"])


def test_merge_refuses_a_judge_who_leaves_somebody_out():
    """A reply without one loss of each candidate is refused by name."""

    def silent(site, _, reply):
        judged = site == "beta" and reply.header.phase == "judge"
        return replace(reply, losses={}) if judged else reply

    config = make_config(guards=GuardsSection(anchor_margin=0.1))
    state = step(run_until(config, "train"))
    after = absorb(state, replies_to(next_request(state), FakeSites(alter=silent)))
    assert "judges" in after.records[-1].missing["beta"]


def test_merge_with_the_middle_of_three_sites():
    """Median and trimmed mean run to the end with three sites and one liar; weights are equal."""
    for rule in ("median", "trimmed_mean"):
        config = make_config(guards=GuardsSection(rule=rule))
        state = run_until(config, "train")
        keeps = FakeSites(
            kept={arm: dict.fromkeys(SITES, 4) for arm in ("curated", "keep_all", "random")}
        )
        state = absorb(state, replies_to(next_request(state), keeps))
        weights = [one.weight for one in state.records[-1].sites.values()]
        assert weights == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("rule", "guard", "said"),
    [
        ("sparse_sum", "none", "sparse"),
        ("freeze_a", "median", r"guards\.rule"),
        ("alternate", "trimmed_mean", r"guards\.rule"),
    ],
)
def test_merge_refuses_what_does_not_go_together_before_anything_starts(rule, guard, said):
    """A rule for sparse differences, or a shared factor that the guard would make anew."""
    with pytest.raises(PluginError, match=said):
        held_to_guards(merging(rule, guards=GuardsSection(rule=guard)))
    held_to_guards(merging("freeze_a", guards=GuardsSection(rule="krum")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"merging": PluginSection(name="ties", settings={"density": "half"})}, "'density'"),
        ({"weighting": PluginSection(name="samples_kept", settings={"cap": "x"})}, "'cap'"),
        ({"threshold": PluginSection(name="budget", settings={})}, "needs the setting"),
        ({"scorer": ScorerSection(name="calibrated", settings={"folds": 1.5})}, "'folds'"),
        ({"training": TrainingSection(objective=PluginSection(name="proximal"))}, "'mu'"),
        (
            {
                "training": TrainingSection(
                    ordering=PluginSection(name="folding", settings={"folds": "x"})
                )
            },
            "'folds'",
        ),
    ],
)
def test_plan_makes_every_plug_in_before_anything_starts(changes, said):
    """A wrong setting of any kind of plug-in is an input error that names it."""
    with pytest.raises(PluginError, match=said):
        check_plan(make_config(**changes))


def test_plan_leaves_plug_ins_that_only_sites_have_to_them():
    """A scorer of a package that the coordinator lacks is no error here."""
    check_plan(make_config(scorer=ScorerSection(name="of_another_package")))


def test_plan_refuses_alternate_in_one_round():
    """One round would train B alone; two train both. freeze_a trains B alone on purpose."""
    once, twice = (TrainingSection(rounds=number) for number in (1, 2))
    with pytest.raises(ConfigError, match=r"training\.rounds = 1.*'alternate'.*at least 2"):
        check_plan(merging("alternate", training=once))
    check_plan(merging("alternate", training=twice))
    check_plan(merging("freeze_a", training=once))


def test_plan_refuses_more_liars_than_the_sites_can_outvote():
    """Krum needs 2 f + 3 sites; the error names them."""
    members = tuple(MemberSection(name=site, key="") for site in SITES)
    for liars, fits in ((0, True), (1, False), (9, False)):
        chosen = PluginSection(name="flower:Krum", settings={"num_malicious_nodes": liars})
        config = make_config(merging=chosen, members=members)
        if fits:
            check_plan(config)
            continue
        words = rf"at least {2 * liars + 3} sites, .* 3; .*settings\.num_malicious_nodes, or choose"
        with pytest.raises(ConfigError, match=words):
            check_plan(config)


def test_plan_names_no_setting_that_the_rule_does_not_have(monkeypatch):
    """Law: what to change is a setting of the chosen rule, or the rule."""

    class FourSites:
        fewest = 4

        def __call__(self, *_: object) -> None:
            """Merge nothing."""

    members = tuple(MemberSection(name=site, key="") for site in SITES)
    own = MergePlugins(weighting=build("weighting", "uniform", {}), merging=FourSites())
    monkeypatch.setattr(MergePlugins, "of", lambda _: own)
    with pytest.raises(ConfigError, match=r"needs at least 4 sites.*; take more sites, or choose"):
        check_plan(make_config(members=members))


def test_merge_goes_on_where_judges_leave_too_few_for_krum():
    """Five of seven sites are judged out: Krum, which needs five, is not asked; nothing stops.

    Without judges the same two sites are a named error, as nothing explains their number.
    """
    start = initial()
    federation = {f"s{i}": nudged(start, "round", i) for i in range(7)}
    out = {f"s{i}": "judged" for i in range(5)}
    guards = GuardsSection(rule="krum", norm=2.0, weight=0.6)
    config = make_config(guards=guards)
    counts = dict.fromkeys(federation, 4)
    merged = merge_round(federation, counts, start, None, config, seen=RoundEvidence(left_out=out))
    assert [site for site, weight in merged.weights.items() if weight > 0] == ["s5", "s6"]
    assert set(out) <= set(merged.bounded)
    rest = {site: federation[site] for site in ("s5", "s6")}
    with pytest.raises(ConfigError, match=r"guards\.liars"):
        merge_round(rest, counts, start, None, config)


def test_merge_weighs_by_what_the_judges_measure():
    """tail_patch: who raises the anchors' loss gets the share of the others' bundle, not a half."""
    config = make_config(
        weighting=PluginSection(name="tail_patch"), guards=GuardsSection(anchor_margin=1e6)
    )
    held_to_guards(config)
    state = step(step(run_until(config, "train")), harmful=())
    trained = state.records[-2]
    equal = [one.weight for one in trained.sites.values()]
    assert equal == pytest.approx([1 / 3] * 3)
    bad = step(step(run_until(config, "train")), harmful=("gamma",)).records[-2].sites
    assert bad["gamma"].effects["law"].gain < 0 < bad["alpha"].effects["law"].gain
    assert bad["gamma"].weight == pytest.approx(3 / 133)
    with pytest.raises(PluginError, match=r"guards\.anchor_margin"):
        held_to_guards(make_config(weighting=PluginSection(name="tail_patch")))


def test_merge_refuses_a_judge_of_other_anchors_and_goes_on():
    """Who measures fewer anchors, or names other domains, is refused by name; the rest decide."""

    def fewer(site, _, reply):
        if site != "beta" or reply.header.phase != "judge":
            return reply
        losses = {name: values[:2] for name, values in reply.losses.items()}
        return replace(reply, before=reply.before[:2], losses=losses, domains=("law", "law"))

    config = make_config(guards=GuardsSection(anchor_margin=0.1))
    state = step(run_until(config, "train"))
    after = absorb(state, replies_to(next_request(state), FakeSites(alter=fewer)))
    assert "anchors" in after.records[-1].missing["beta"]
    assert set(after.records[-1].missing) == {"beta"}
    assert sum(one.weight for one in after.records[-2].sites.values()) == pytest.approx(1.0)
