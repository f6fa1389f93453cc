"""Laws of weighting: shares sum to 1, caps hold, nothing kept is a named case."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.curation.errors import EmptySelectionError, NonFiniteError, ProtocolError
from fedwinnow.strategies.weighting.anchor_alignment import anchor_alignment
from fedwinnow.strategies.weighting.samples_kept import samples_kept
from fedwinnow.strategies.weighting.uniform import uniform

COUNTS = st.dictionaries(st.text("abcdef", min_size=1), st.integers(0, 10_000), min_size=1).filter(
    lambda counts: any(counts.values())
)


@given(counts=COUNTS, cap=st.floats(0.01, 1.0))
def test_samples_kept_shares_sum_to_one_under_the_cap(counts, cap):
    """Shares sum to 1, none above the cap (or above 1 / n), more samples never weigh less."""
    weights = samples_kept(cap=cap)(counts)
    assert set(weights) == {site for site, count in counts.items() if count > 0}
    assert sum(weights.values()) == pytest.approx(1.0)
    assert max(weights.values()) <= max(cap, 1 / len(weights)) + 1e-12
    ranked = sorted(weights, key=lambda site: counts[site])
    for less, more in itertools.pairwise(ranked):
        assert weights[less] <= weights[more] + 1e-12


def test_samples_kept_without_cap_is_proportional():
    """A cap of 1 gives FedAvg's weights; a site that kept nothing is left out."""
    weights = samples_kept(cap=1.0)({"a": 30, "b": 10, "c": 0})
    assert weights == {"a": pytest.approx(0.75), "b": pytest.approx(0.25)}


def test_samples_kept_hands_the_excess_on_in_proportion():
    """What exceeds the cap goes to the others by their counts, again until no share exceeds it."""
    weights = samples_kept(cap=0.5)({"a": 80, "b": 15, "c": 5})
    assert weights == pytest.approx({"a": 0.5, "b": 0.375, "c": 0.125})
    twice = samples_kept(cap=0.4)({"a": 80, "b": 15, "c": 5})
    assert twice == pytest.approx({"a": 0.4, "b": 0.4, "c": 0.2})


def test_samples_kept_below_one_over_n_is_equal():
    """A cap that cannot hold means equal shares; one site alone weighs 1."""
    assert samples_kept(cap=0.2)({"a": 1, "b": 99}) == {"a": 0.5, "b": 0.5}
    assert samples_kept()({"a": 7}) == {"a": 1.0}
    assert samples_kept()({"a": 1, "b": 99}) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("cap", [0.0, -0.1, 1.1, float("nan")])
def test_samples_kept_refuses_a_cap_out_of_range(cap):
    """A cap outside (0, 1] is refused with the range."""
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        samples_kept(cap=cap)


def test_uniform_weighs_trained_sites_alike():
    """Every site with a kept sample gets 1 / n."""
    assert uniform()({"b": 5, "a": 500, "c": 0}) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("rule", [samples_kept(), uniform()])
def test_weighting_of_nothing_kept_is_named(rule):
    """All counts 0, or no site, is an EmptySelectionError; a negative count is refused by site."""
    with pytest.raises(EmptySelectionError, match="0 kept at all 2 sites"):
        rule({"a": 0, "b": 0})
    with pytest.raises(EmptySelectionError):
        rule({})
    with pytest.raises(ProtocolError, match="site 'b'"):
        rule({"a": 3, "b": -1})


@pytest.mark.parametrize("rule", [samples_kept(), uniform()])
def test_weighting_ignores_order_of_arrival(rule):
    """Sites come out sorted by name."""
    counts = {"c": 4, "a": 1, "b": 2}
    assert list(rule(counts).items()) == list(rule(dict(reversed(counts.items()))).items())
    assert list(rule(counts)) == ["a", "b", "c"]


@given(
    counts=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 50), min_size=1),
    seed=st.integers(0, 1000),
)
def test_anchor_alignment_moves_weight_to_where_the_anchors_gain(counts, seed):
    """Sums to 1; of two sites alike the one that helps more weighs at least as much."""
    draw = np.random.default_rng(seed)
    toward = {site: float(draw.uniform(-1, 1)) for site in counts}
    rule = anchor_alignment(cap=1.0)
    equal = rule.align(dict.fromkeys(counts, 1), toward, {})
    assert sum(equal.values()) == pytest.approx(1.0)
    ordered = sorted(counts, key=lambda site: toward[site])
    for less, more in itertools.pairwise(ordered):
        assert equal[less] <= equal[more] + 1e-12
    for site in counts:
        assert equal[site] >= 0.05 / len(counts) - 1e-12
    assert max(anchor_alignment(cap=0.4).align(counts, toward, {}).values()) <= max(
        0.4 + 1e-9, 1 / len(counts) + 1e-9
    )


@given(counts=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 50), min_size=1))
def test_anchor_alignment_without_a_direction_is_the_plain_weighting(counts):
    """Rate 0, or updates that lead nowhere, and no floor: the weights of samples_kept."""
    plain = samples_kept()(counts)
    toward = dict.fromkeys(counts, 0.0)
    assert anchor_alignment(floor=0.0).align(counts, toward, {}) == pytest.approx(plain)
    toward = {site: float(number) for number, site in enumerate(sorted(counts))}
    assert anchor_alignment(rate=0.0, floor=0.0).align(counts, toward, {}) == pytest.approx(plain)
    assert anchor_alignment()(counts) == plain


def test_anchor_alignment_multiplies_over_rounds():
    """A site that leads away loses weight round by round down to the floor; it can come back."""
    rule, weights, seen = anchor_alignment(cap=1.0), {}, []
    for _ in range(6):
        weights = rule.align({"good": 10, "bad": 10}, {"good": 1.0, "bad": -1.0}, weights)
        seen.append(weights["bad"])
    assert seen == sorted(seen, reverse=True)
    assert 0.025 <= seen[-1] < 0.03
    back = rule.align({"good": 10, "bad": 10}, {"good": -1.0, "bad": 1.0}, weights)
    assert back["bad"] > weights["bad"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_anchor_alignment_refuses_what_is_no_number(bad):
    """A NaN or an infinity names the site."""
    with pytest.raises(NonFiniteError, match="'a'"):
        anchor_alignment().align({"a": 1, "b": 1}, {"a": bad, "b": 0.0}, {})
