"""Laws of Flower's strategies as merging rules on the factors."""

import inspect

import numpy as np
import pytest
import torch
from fake_federation import FakeSites, make_config, replies_to
from flwr.app import ArrayRecord
from flwr.serverapp import strategy as flower_strategies
from scipy.stats import trim_mean

from fedwinnow.curation.adapters.algebra import delta, norm, sum_products, target
from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.config.scoring import PluginSection
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import (
    ConfigError,
    IncompatibleAdapterError,
    NonFiniteError,
    PluginError,
    RunError,
)
from fedwinnow.curation.protocol.wire import dump, restore
from fedwinnow.server.run.fold import absorb, initial_state, next_request
from fedwinnow.server.state import RunState
from fedwinnow.strategies.merging.flower.rule import FlowerRule, flower_names
from fedwinnow.strategies.plugin_description import undescribed
from fedwinnow.strategies.registry import build, plugin_factory

pytestmark = pytest.mark.flower  # whole federations, or Flower's own code: not seconds

SHAPES = {"layers.0.q_proj": (5, 4), "layers.1.v_proj": (3, 6)}
WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}
STATEFUL = ("FedAdagrad", "FedAdam", "FedYogi", "FedAvgM")


def adapter(seed, *, scale=2.0, rank=2, by=1.0) -> Adapter:
    """Random factors; the scale may be a site's own."""
    draw = torch.Generator().manual_seed(seed)
    return Adapter(
        base="base",
        a={m: by * torch.randn(rank, n, generator=draw) for m, (_, n) in SHAPES.items()},
        b={m: by * torch.randn(k, rank, generator=draw) for m, (k, _) in SHAPES.items()},
        scales=dict.fromkeys(SHAPES, scale),
    )


PREVIOUS = adapter(9)
SITES = {"a": adapter(1), "b": adapter(2, scale=4.0), "c": adapter(3)}


def settings_of(name):
    """Settings under which a strategy has a state to keep."""
    return {"server_momentum": 0.9} if name == "FedAvgM" else {}


def under_previous(site) -> dict[str, np.ndarray]:
    """A site's factors, B under the previous scale, float64."""
    one = SITES[site]
    arrays = {}
    for m in SHAPES:
        arrays[f"{m} A"] = one.a[m].double().numpy()
        arrays[f"{m} B"] = one.b[m].double().numpy() * one.scales[m] / 2.0
    return arrays


def arrays_of(merged: Adapter) -> dict[str, np.ndarray]:
    """Factors of a merged adapter."""
    found = {f"{m} A": merged.a[m].double().numpy() for m in SHAPES}
    return found | {f"{m} B": merged.b[m].double().numpy() for m in SHAPES}


@pytest.mark.parametrize(
    ("name", "settings", "oracle"),
    [
        ("FedAvg", {}, lambda x: np.tensordot(list(WEIGHTS.values()), x, axes=1)),
        ("FedMedian", {}, lambda x: np.median(x, axis=0)),
        ("FedTrimmedAvg", {"beta": 0.34}, lambda x: trim_mean(x, 0.34, axis=0)),
    ],
)
def test_flower_rule_is_the_strategy_on_each_factor(name, settings, oracle):
    """Entry by entry, the merged factors are the statistic of the sites' factors at one scale."""
    merged = build("merging", f"flower:{name}", settings)(SITES, WEIGHTS, PREVIOUS).adapter
    sites = [under_previous(site) for site in SITES]
    for key, found in arrays_of(merged).items():
        wanted = oracle(np.stack([site[key] for site in sites]))
        np.testing.assert_allclose(found, wanted, rtol=1e-6)  # fp32 result
    assert merged.scales == PREVIOUS.scales


def test_flower_krum_gives_the_site_in_the_middle():
    """One far liar of four: Krum's result is one honest site's own adapter, whatever its weight."""
    honest = adapter(1)
    near = {
        site: Adapter(
            base="base",
            a={m: honest.a[m] + 0.01 * place for m in SHAPES},
            b=dict(honest.b),
            scales=dict(honest.scales),
        )
        for place, site in enumerate("abc")
    }
    liar = adapter(4, by=100.0)
    weights = {"a": 0.1, "b": 0.1, "c": 0.1, "liar": 0.7}
    rule = build("merging", "flower:Krum", {"num_malicious_nodes": 1})
    merged = rule({**near, "liar": liar}, weights, honest).adapter
    assert adapter_hash(merged) in {adapter_hash(one) for one in near.values()}


def test_flower_rule_reports_its_distance_from_the_weighted_sum():
    """error_norm is ‖merged − ΔW*‖ against the dense matrices."""
    merged = build("merging", "flower:FedAvg", {})(SITES, WEIGHTS, PREVIOUS)
    error = 0.0
    for m in SHAPES:
        wanted, found = target(SITES, WEIGHTS, m), delta(merged.adapter, m)
        error += float((wanted.left @ wanted.right - found.left @ found.right).square().sum())
    assert merged.report["error_norm"] == pytest.approx(error**0.5, rel=1e-9)
    assert merged.report["relative_error"] > 0


@pytest.mark.parametrize("name", STATEFUL)
def test_flower_rule_keeps_its_state_as_the_strategy_itself(name):
    """Rounds through a committed memory = rounds of one living strategy, to rounding of float32."""
    rule = build("merging", f"flower:{name}", settings_of(name))
    living = FlowerRule(name, getattr(flower_strategies, name), settings_of(name)).make()
    previous, memory = PREVIOUS, {}
    for number in (1, 2, 3):
        arrived = {site: adapter(10 * number + i) for i, site in enumerate("abc")}
        lived = FlowerRule(name, type(living), {})._round(
            living, number, arrived, WEIGHTS, previous
        )
        merged, memory = rule.merge_with_state(arrived, WEIGHTS, previous, memory)
        previous = merged.adapter
        if name == "FedAvgM":
            living.current_arrays = None  # it would go on from unrounded arrays
        for m in SHAPES:
            np.testing.assert_allclose(
                lived[f"{m}.lora_A"], merged.adapter.a[m].numpy(), rtol=1e-5, atol=1e-6
            )  # fp32 result
    assert memory["rounds"] == 3
    assert len(memory) > 1


def test_flower_adam_first_steps_are_those_of_the_formula():
    """FedAdam by hand: m, v and the corrected rate of Flower's own code, over two rounds."""
    rule = build("merging", "flower:FedAdam", {"eta": 0.05, "beta_1": 0.8, "beta_2": 0.9})
    one = {"a": adapter(1)}
    key, memory, x = "layers.0.q_proj", {}, PREVIOUS
    m = v = 0.0
    for number in (1, 2):
        step = one["a"].a[key].double().numpy() - x.a[key].double().numpy()
        m, v = 0.8 * m + 0.2 * step, 0.9 * v + 0.1 * step**2
        rate = 0.05 * np.sqrt(1 - 0.9 ** (number + 1)) / (1 - 0.8 ** (number + 1))
        wanted = x.a[key].double().numpy() + rate * m / (np.sqrt(v) + 1e-3)
        merged, memory = rule.merge_with_state(one, {"a": 1.0}, x, memory)
        x = merged.adapter
        np.testing.assert_allclose(x.a[key].numpy(), wanted, rtol=1e-5)  # fp32 result


@pytest.mark.parametrize("name", [n for n in flower_names() if n not in ("Krum", "MultiKrum")])
def test_flower_rule_ignores_the_order_of_arrival(name):
    """Another order of the same sites gives the same bits."""
    rule = build("merging", f"flower:{name}", settings_of(name))
    backwards = dict(reversed(SITES.items()))
    first = rule(SITES, WEIGHTS, PREVIOUS).adapter
    assert adapter_hash(rule(backwards, WEIGHTS, PREVIOUS).adapter) == adapter_hash(first)


def test_flower_rule_leaves_what_it_is_given_alone():
    """Neither the sites' factors nor the memory change."""
    rule = build("merging", "flower:FedMedian", {})
    before = [adapter_hash(one) for one in SITES.values()]
    rule(SITES, WEIGHTS, PREVIOUS)
    assert [adapter_hash(one) for one in SITES.values()] == before
    rule = build("merging", "flower:FedAdam", {})
    _, memory = rule.merge_with_state(SITES, WEIGHTS, PREVIOUS, {})
    copied = {name: array.copy() for name, array in memory.items()}
    rule.merge_with_state(SITES, WEIGHTS, PREVIOUS, memory)
    assert all(np.array_equal(memory[name], copied[name]) for name in copied)


def fold(state: RunState, until: int) -> RunState:
    """Exchanges with fake sites, this many or to the end."""
    for _ in range(until):
        request = next_request(state)
        if request is None:
            break
        state = absorb(state, replies_to(request, FakeSites()))
    return state


def test_flower_adam_resumes_from_what_is_committed():
    """A run restored from its bytes after every exchange ends with the unbroken run's adapter."""
    config = make_config(merging=PluginSection(name="flower:FedAdam", settings={"eta": 0.01}))
    whole = fold(initial_state(config, "run"), 100)
    broken, seen = initial_state(config, "run"), set()
    while next_request(broken) is not None:
        broken = restore(dump(fold(broken, 1)), RunState)
        seen |= {int(broken.memory["rounds"][0])} if broken.memory else set()
    assert adapter_hash(broken.finals["curated"]) == adapter_hash(whole.finals["curated"])
    assert seen == {1, 2, 3}


def test_flower_state_starts_anew_in_every_arm():
    """Moments of one arm do not reach the next: an arm gives what it gives alone."""
    settings = PluginSection(name="flower:FedAvgM", settings={"server_momentum": 0.5})
    both = fold(initial_state(make_config(merging=settings), "run"), 100)
    rounds = [r for r in both.records if r.phase == "train" and r.round == 1]
    assert len(rounds) == 2
    assert both.memory["rounds"] == 3


def test_flower_rule_refuses_by_name():
    """What is no rule, no setting, not equal in rank or not finite is named."""
    for name, why in (
        ("FedProx", "proximal"),
        ("QFedAvg", "training loss"),
        ("DifferentialPrivacyServerSideFixedClipping", "wraps another"),
        ("os", "no such strategy"),
        ("Strategy", "base class"),
    ):
        with pytest.raises(PluginError, match=why):
            plugin_factory("merging", f"flower:{name}")
    with pytest.raises(PluginError, match=r"no setting 'fraction_train'.*eta"):
        build("merging", "flower:FedAdam", {"fraction_train": 0.5})
    with pytest.raises(PluginError, match="beta"):
        build("merging", "flower:FedTrimmedAvg", {"beta": 0.7})
    rule = build("merging", "flower:FedAvg", {})
    with pytest.raises(IncompatibleAdapterError, match=r"'b'.*rank 2, got 3"):
        rule({"a": adapter(1), "b": adapter(2, rank=3)}, {"a": 0.5, "b": 0.5}, PREVIOUS)
    spoilt = adapter(1)
    spoilt.a["layers.0.q_proj"][0, 0] = torch.nan
    with pytest.raises(NonFiniteError):
        rule({"a": spoilt}, {"a": 1.0}, PREVIOUS)
    with pytest.raises(RunError, match="gives nothing for 4 sites"):
        build("merging", "flower:Bulyan", {"num_malicious_nodes": 1})(
            {site: adapter(1) for site in "abcd"}, dict.fromkeys("abcd", 0.25), PREVIOUS
        )


def test_flower_state_that_is_no_array_is_refused():
    """A strategy that keeps an object between rounds cannot be committed, and says which."""

    class Keeping(flower_strategies.FedAvg):
        def aggregate_train(self, server_round, replies):
            self.diary = ArrayRecord()
            return super().aggregate_train(server_round, replies)

    rule = FlowerRule("Keeping", Keeping, {})
    with pytest.raises(PluginError, match=r"keeps diary"):
        rule(SITES, WEIGHTS, PREVIOUS)


def test_flower_fedavg_is_fedavg_factors():
    """flower:FedAvg and our own fedavg_factors give one product."""
    ours = build("merging", "fedavg_factors", {})(SITES, WEIGHTS, PREVIOUS).adapter
    theirs = build("merging", "flower:FedAvg", {})(SITES, WEIGHTS, PREVIOUS).adapter
    for m in SHAPES:
        apart = norm(sum_products([delta(ours, m), delta(theirs, m, -1.0)]))
        assert apart <= 1e-6 * norm(delta(ours, m))  # fp32 factors


@pytest.mark.parametrize("name", flower_names())
def test_every_number_of_a_flower_strategy_has_a_range(name):
    """−1 is in the range of none of them, and the error names setting, value and range."""
    for key in inspect.signature(plugin_factory("merging", f"flower:{name}")).parameters:
        with pytest.raises(PluginError, match=rf"{name}.*{key} = -1 is out of range; allowed: "):
            build("merging", f"flower:{name}", {key: -1})


def test_every_setting_of_a_flower_strategy_is_explained():
    """Flower's own docstrings are read, whether they put a space before the colon or not."""
    for name in flower_names():
        assert undescribed(plugin_factory("merging", f"flower:{name}")) == ()


def test_krum_refuses_more_liars_than_it_can_tell_apart():
    """Two adapters and nine liars: refused with the number that it needs."""
    rule = build("merging", "flower:Krum", {"num_malicious_nodes": 9})
    sites = {"a": adapter(1), "b": adapter(2)}
    with pytest.raises(ConfigError, match=r"num_malicious_nodes = 9 needs at least 12.*got 2"):
        rule(sites, {"a": 1.0, "b": 1.0}, adapter(0))
