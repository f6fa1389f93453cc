"""Partitions: every sample in one silo, whatever the order of the list."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ConfigError, DataError
from fedwinnow.simulations.datasets.partitions import by_domain, iid, unequal_quality


def samples(number, domains=("law", "art", "food")):
    return [
        Sample(
            id=f"{i:032x}",
            prompt=f"prompt {i}",
            response=" ".join(f"s{i}w{j}" for j in range(10)),
            domain=domains[i % len(domains)],
        )
        for i in range(number)
    ]


@given(number=st.integers(1, 40), silos=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_iid_deals_each_sample_once_and_evenly(number, silos, seed):
    """Algebra: silos are disjoint, complete, differ by one sample at most, in any order of list."""
    given_samples = samples(number)
    if silos > number:
        with pytest.raises(ConfigError, match=f"silos = {silos} .* 1 to the {number}"):
            iid(given_samples, silos=silos, seed=seed)
        return
    found = iid(given_samples, silos=silos, seed=seed)
    sizes = [len(part) for part in found.values()]
    assert max(sizes) - min(sizes) <= 1
    assert len(found) == silos
    dealt = [one for part in found.values() for one in part]
    assert sorted(dealt, key=lambda one: one.id) == given_samples
    mixed = [given_samples[i] for i in np.random.default_rng(seed).permutation(number)]
    assert iid(mixed, silos=silos, seed=seed) == found


def test_iid_silos_are_alike_and_follow_the_seed():
    """Law: each domain reaches each silo in about its share; another seed deals otherwise."""
    found = iid(samples(900), silos=3, seed=0)
    for part in found.values():
        assert all(70 < count < 130 for count in Counter(one.domain for one in part).values())
    assert found != iid(samples(900), silos=3, seed=1)


def test_by_domain_parts_by_domain():
    """Law: one silo per domain with all of its samples, whatever the order of the list."""
    found = by_domain(samples(20))
    assert list(found) == ["art", "food", "law"]
    assert all({one.domain for one in part} == {name} for name, part in found.items())
    assert sum(map(len, found.values())) == 20
    assert by_domain(samples(20)[::-1]) == found
    assert by_domain([]) == {}
    with pytest.raises(DataError, match="has no domain to split by"):
        by_domain(samples(3, domains=("law", "")))


def test_unequal_quality_plants_each_share():
    """Law: each silo gets exactly its own share of noise, wrong domains from the other silos."""
    silos = by_domain(samples(60))
    shares = {"law": 0.6, "art": 0.1, "food": 0.0}
    found = unequal_quality(silos, shares=shares, kinds=("swap", "wrong_domain"), seed=0)
    for name, part in found.items():
        bad = [one for one in part if one.labels["corruption"] != "clean"]
        assert len(bad) == round(shares[name] * 20)
        assert [one.prompt for one in part] == [one.prompt for one in silos[name]]
    wrong = [one for one in found["law"] if one.labels["corruption"] == "wrong_domain"]
    elsewhere = {one.response for name in ("art", "food") for one in silos[name]}
    assert wrong
    assert {one.response for one in wrong} <= elsewhere


def test_unequal_quality_wants_one_share_for_each_silo():
    """Edge: a silo without share, or a share without silo, is named."""
    silos = by_domain(samples(9))
    for shares in ({"law": 0.5}, {"law": 0, "art": 0, "food": 0, "none": 0}, {}):
        with pytest.raises(ConfigError, match="silos art, food, law, got"):
            unequal_quality(silos, shares=shares, kinds=("cut",), seed=0)
