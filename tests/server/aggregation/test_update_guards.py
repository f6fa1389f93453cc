"""Laws of the guards: against dense float64 matrices, and against sites that lie."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seeded_adapter import SHAPES, make

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters.algebra import interpolate
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import ConfigError
from fedwinnow.server.aggregation.update_guards import (
    bound_norms,
    cap_weights,
    harmful_sites,
    krum,
    robust_middle,
    shared_coordinates,
    site_updates,
    update_gram,
)

seeds = st.integers(0, 10_000)


def dense(adapter: Adapter) -> torch.Tensor:
    """ΔW of all modules in one vector."""
    parts = [adapter.scales[m] * adapter.b[m] @ adapter.a[m] for m in SHAPES]
    return torch.cat([part.flatten() for part in parts])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@given(seed=seeds, sites=st.integers(1, 5))
def test_gram_is_that_of_dense_updates(seed, sites):
    """Inner products from factors are those of ΔW_i − ΔW, flattened."""
    before = make(seed)
    federation = {f"site-{i}": make(seed + i + 1, rank=1 + i % 3) for i in range(sites)}
    moved = torch.stack([dense(federation[s]) - dense(before) for s in sorted(federation)])
    assert torch.allclose(update_gram(site_updates(federation, before)), moved @ moved.T, rtol=1e-9)


@given(seed=seeds, share=st.floats(0, 1))
def test_between_is_the_straight_line(seed, share):
    """Whether factors are shared or not, ΔW lies where the share says."""
    start, end = make(seed), make(seed + 1, rank=3)
    same_a = Adapter(base="base", a=start.a, b=make(seed + 2).b, scales=start.scales)
    for other in (end, same_a):
        found = interpolate(start, other, share)
        assert apart(dense(found), (1 - share) * dense(start) + share * dense(other)) < 1e-9
    assert all(torch.equal(interpolate(start, same_a, share).a[m], start.a[m]) for m in SHAPES)


def test_bound_norms_shortens_the_long_one_alone():
    """Norms of 1, 2 and 100 with a bound of 2 medians: the third becomes 4, along itself."""
    before = make(0, size=0.0)
    base = make(1)
    unit = float(dense(base).norm())
    federation = {
        name: interpolate(before, base, length / unit)
        for name, length in (("a", 1.0), ("b", 2.0), ("c", 100.0))
    }
    kept, words = bound_norms(federation, before, most=2.0)
    assert set(words) == {"c"}
    assert float(dense(kept["c"]).norm()) == pytest.approx(4.0)
    assert apart(dense(kept["c"]), dense(federation["c"]) / 25) < 1e-9
    assert kept["a"] is federation["a"]
    assert kept["b"] is federation["b"]


def test_bound_norms_of_no_update_at_all():
    """Sites that changed nothing have a median norm of 0 and are left as they are."""
    before = make(0)
    kept, words = bound_norms({"a": before, "b": before}, before, most=1.0)
    assert words == {}
    assert kept["a"] is before


@given(
    weights=st.lists(st.floats(0.001, 1), min_size=1, max_size=6),
    most=st.floats(0.05, 1, exclude_min=True),
)
def test_cap_weights_keeps_the_sum_and_the_order(weights, most):
    """Shares sum to 1, none is above the cap that can be, larger stays no smaller."""
    total = sum(weights)
    given_shares = {f"s{i}": weight / total for i, weight in enumerate(weights)}
    found, words = cap_weights(given_shares, most=most)
    assert sum(found.values()) == pytest.approx(1.0)
    assert max(found.values()) <= max(most, 1 / len(weights)) + 1e-9
    ordered = sorted(given_shares, key=lambda site: given_shares[site])
    values = [found[site] for site in ordered]
    assert all(one <= other + 1e-12 for one, other in pairwise(values))
    assert set(words) == {site for site in found if found[site] < given_shares[site]}


@given(seed=st.integers(0, 200))
def test_krum_leaves_out_the_liar(seed):
    """Six sites near each other and one far away: the far one goes, whatever its name."""
    before, draw = make(0, size=0.0), np.random.default_rng(seed)
    shared = make(seed + 1)
    liar = f"s{draw.integers(7)}"
    federation = {f"s{i}": interpolate(shared, make(seed + 10 + i), 0.05) for i in range(7)} | {
        liar: make(seed + 99, size=50.0)
    }
    stay, words = krum(federation, before, liars=1)
    assert liar not in stay
    assert set(words) == {liar}
    assert len(stay) == 6


def test_krum_is_its_definition_on_dense_updates():
    """Scores are sums of squared distances to the n − f − 2 nearest, on flattened ΔW."""
    before = make(0)
    federation = {f"s{i}": make(i + 1, size=1.0 + i) for i in range(7)}
    moved = {site: dense(one) - dense(before) for site, one in federation.items()}

    def score(site: str) -> float:
        others = [moved[other] for other in moved if other != site]
        return sum(sorted(float((moved[site] - one).square().sum()) for one in others)[:3])

    scores = {site: score(site) for site in moved}
    expected = sorted(sorted(scores, key=lambda site: scores[site])[:5])
    assert list(krum(federation, before, liars=2)[0]) == expected


@pytest.mark.parametrize("kind", ["median", "trimmed_mean"])
def test_middle_is_that_of_its_coordinates(kind):
    """The update is left · middle(cores) · right, and the bases hold every update whole."""
    before = make(0)
    federation = {f"s{i}": make(i + 1) for i in range(5)}
    changes = site_updates(federation, before)
    found = robust_middle(federation, before, kind=kind, liars=1)
    for module in SHAPES:
        left, cores, right = shared_coordinates(changes, module)
        for core, site in zip(cores, sorted(changes), strict=True):
            whole = changes[site][module]
            assert apart(left @ core @ right, whole.left @ whole.right) < 1e-9
        centre = (
            cores.median(dim=0).values if kind == "median" else cores.sort(0).values[1:4].mean(0)
        )
        moved = maths.delta(found, module).left @ maths.delta(found, module).right
        start = maths.delta(before, module).left @ maths.delta(before, module).right
        assert apart(moved - start, left @ centre @ right) < 1e-9


@given(seed=st.integers(0, 50), kind=st.sampled_from(["median", "trimmed_mean"]))
def test_middle_of_equal_sites_is_theirs(seed, kind):
    """Where all say the same, so does the middle; a liar among them moves it nowhere far."""
    before, honest = make(seed), make(seed + 1)
    federation = {f"s{i}": honest for i in range(4)}
    assert apart(dense(robust_middle(federation, before, kind=kind, liars=1)), dense(honest)) < 1e-9
    federation["liar"] = make(seed + 2, size=1e6)
    assert apart(dense(robust_middle(federation, before, kind=kind, liars=1)), dense(honest)) < 1e-3


@pytest.mark.parametrize(("rule", "sites"), [("krum", 4), ("median", 2), ("trimmed_mean", 2)])
def test_guards_say_how_many_sites_a_rule_needs(rule, sites):
    """One liar: Krum needs five sites, median and trimmed mean three."""
    federation = {f"s{i}": make(i) for i in range(sites)}
    with pytest.raises(ConfigError, match=r"guards\.liars"):
        if rule == "krum":
            krum(federation, make(9), liars=1)
        else:
            robust_middle(federation, make(9), kind=rule, liars=1)


def test_against_anchors_asks_the_others():
    """The median of the others decides; the owner's word and one lying judge do not."""
    before = np.array([1.0, 3.0])
    losses = {
        "good": {"good": [9.0, 9.0], "b": [1.0, 2.9], "c": [1.0, 3.0], "d": [50.0, 50.0]},
        "bad": {"bad": [0.0, 0.0], "b": [2.0, 4.0], "c": [2.0, 4.0], "d": [0.0, 0.0]},
        "alone": {"alone": [9.0, 9.0]},
    }
    told = {o: {j: np.array(v) for j, v in said.items()} for o, said in losses.items()}
    words = harmful_sites(told, before, margin=0.1)
    assert set(words) == {"bad"}
    assert "+50.0%" in words["bad"]
