"""Laws of the exact rules: equal to dense float64 ΔW*, whatever the ranks, scales and weights."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merging_cases import SHAPES, apart, dense, federations, goal, make, sharing, whole

from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.errors import IncompatibleAdapterError, NonFiniteError
from fedwinnow.strategies.interfaces.merging import FactorMerging
from fedwinnow.strategies.merging.alternate import alternate
from fedwinnow.strategies.merging.fedex import fedex
from fedwinnow.strategies.merging.fedsvd import fedsvd
from fedwinnow.strategies.merging.flora import flora
from fedwinnow.strategies.merging.freeze_a import freeze_a
from fedwinnow.strategies.merging.stack import stack

EXACT = {"stack": stack(), "flora": flora(), "fedex": fedex()}
SHARED_A = {"freeze_a": freeze_a(), "alternate": alternate(), "fedsvd": fedsvd()}


def exact(merged, sites, weights):
    """Adapter and change of the base together are ΔW* to 1e-6; nothing counts as lost."""
    square = 0.0
    for module in SHAPES:
        wanted = goal(sites, weights, module)
        square += float(wanted.square().sum())
        assert apart(whole(merged, module), wanted) <= 1e-6  # float32 factors
    assert merged.report["discarded_energy"] == 0.0
    assert merged.report["target_norm"] == pytest.approx(square**0.5, rel=1e-5)


@pytest.mark.parametrize("name", sorted(EXACT))
@given(federation=federations(), seed=st.randoms())
def test_merging_exact_for_any_sites(name, federation, seed):
    """Stack, FLoRA and FedEx equal ΔW* for mixed ranks, patterns, rsLoRA, weights and orders."""
    sites, weights, previous = federation
    arrived = list(sites.items())
    seed.shuffle(arrived)
    exact(EXACT[name](dict(arrived), weights, previous), sites, weights)


@pytest.mark.parametrize("name", sorted(SHARED_A))
@given(federation=sharing("a"), seed=st.randoms())
def test_merging_exact_for_a_shared_a(name, federation, seed):
    """FFA, RoLoRA's even rounds and FedSVD equal ΔW* where A is shared, at the previous rank."""
    sites, weights, previous = federation
    arrived = list(sites.items())
    seed.shuffle(arrived)
    merged = SHARED_A[name](dict(arrived), weights, previous)
    exact(merged, sites, weights)
    assert merged.change is None
    for module in SHAPES:
        assert merged.adapter.a[module].shape == previous.a[module].shape
        if name != "fedsvd":
            assert torch.equal(merged.adapter.a[module], previous.a[module])
    assert merged.adapter.scales == previous.scales


@given(federation=sharing("b"))
def test_alternate_is_exact_for_a_shared_b(federation):
    """RoLoRA's odd rounds equal ΔW* where B is shared, and leave B as it was."""
    sites, weights, previous = federation
    merged = alternate()(sites, weights, previous)
    exact(merged, sites, weights)
    for module in SHAPES:
        assert torch.equal(merged.adapter.b[module], previous.b[module])


@settings(max_examples=20)
@given(federation=federations())
def test_flora_restarts_the_adapter(federation):
    """The adapter comes back with the previous A and B = 0; the change alone is ΔW*."""
    sites, weights, previous = federation
    merged = flora()(sites, weights, previous)
    assert adapter_hash(merged.adapter) == adapter_hash(
        replace(previous, b={m: torch.zeros_like(x) for m, x in previous.b.items()})
    )
    for module in SHAPES:
        wanted = goal(sites, weights, module)
        assert apart(dense(merged.change, module), wanted) <= 1e-6
        rank = sum(site.a[module].shape[0] for site in sites.values())
        assert merged.change.a[module].shape[0] <= min(rank, *SHAPES[module])
    assert merged.change.base == previous.base


def test_fedex_change_is_the_covariance_at_its_own_rank():
    """Three sites of rank 2 leave a covariance of rank (3 − 1) · 2, and it is what is sent."""
    sites = {str(i): make(i, rank=2) for i in range(3)}
    merged = fedex()(sites, {"0": 1.0, "1": 2.0, "2": 0.5}, make(9, rank=2))
    assert merged.report["change_rank"] == 4
    square = 0.0
    for module in SHAPES:
        missed = goal(sites, {"0": 1.0, "1": 2.0, "2": 0.5}, module) - dense(merged.adapter, module)
        square += float(missed.square().sum())
        assert apart(dense(merged.change, module), missed) < 1e-5
    assert merged.report["change_norm"] == pytest.approx(square**0.5, rel=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_fedex_of_equal_sites_changes_no_base(count):
    """One site, or several that are equal: no covariance, so nothing goes to the base."""
    sites = {str(i): make(1) for i in range(count)}
    merged = fedex()(sites, {str(i): 0.1 + i for i in range(count)}, make(9))
    assert merged.change is None
    assert merged.report["change_rank"] == 0


def test_flora_change_leaves_modules_out_that_do_not_change():
    """A module whose B is 0 at all sites is no part of the change."""
    site, module = make(1), "h.0.q_proj"
    still = replace(site, b={**site.b, module: torch.zeros_like(site.b[module])})
    merged = flora()({"a": still}, {"a": 1.0}, make(2))
    assert set(merged.change.a) == set(SHAPES) - {module}


def test_fedsvd_rows_are_orthogonal_and_keep_their_length():
    """A holds right singular vectors, each as long as the previous rows in root mean square."""
    previous = make(7)
    sites = {str(i): replace(make(i), a=previous.a) for i in range(2)}
    merged = fedsvd()(sites, {"0": 1.0, "1": 3.0}, previous).adapter
    for module in SHAPES:
        a = merged.a[module].double()
        square = float(previous.a[module].square().sum(dim=1).mean())
        torch.testing.assert_close(a @ a.T, square * torch.eye(3).double(), rtol=1e-5, atol=1e-5)


def test_fedsvd_of_no_update_is_the_previous_adapter():
    """B = 0 everywhere: A comes back as it was, bit for bit."""
    start = make(1, zero=True)
    merged = fedsvd()({"a": start, "b": start}, {"a": 1.0, "b": 1.0}, start).adapter
    assert adapter_hash(merged) == adapter_hash(start)


@pytest.mark.parametrize("name", ["freeze_a", "fedsvd"])
@pytest.mark.parametrize("how", ["one bit", "rank", "dtype"])
def test_merging_with_frozen_a_refuses_another_a(name, how):
    """A site with another A, rank or dtype of A is named; with weight 0 it is left out instead."""
    previous, module = make(1), "h.0.v_proj"
    sites = {s: replace(make(2), a=previous.a) for s in "xyz"}
    if how == "one bit":
        other = previous.a[module].clone()
        other[0, 0] = torch.nextafter(other[0, 0], torch.tensor(9.0))
        sites["y"] = replace(sites["y"], a={**previous.a, module: other})
    elif how == "rank":
        sites["y"] = make(3, rank={"h.0.q_proj": 3, "h.0.v_proj": 2})
        sites["y"] = replace(sites["y"], a={**sites["y"].a, "h.0.q_proj": previous.a["h.0.q_proj"]})
    else:
        sites["y"] = replace(
            sites["y"], a={**previous.a, module: previous.a[module].to(torch.bfloat16)}
        )
    with pytest.raises(
        IncompatibleAdapterError, match=rf"site 'y', module h\.0\.v_proj: merging {name}.*bit for"
    ):
        SHARED_A[name](sites, dict.fromkeys("xyz", 1.0), previous)
    SHARED_A[name](sites, {"x": 1.0, "y": 0.0, "z": 1.0}, previous)


def test_alternate_refuses_two_changed_factors():
    """Both factors changed, by one site or by two, is a refusal that names who changed which."""
    previous = make(1)
    of_b, of_a = replace(make(2), a=previous.a), replace(make(3), b=previous.b)
    with pytest.raises(IncompatibleAdapterError, match=r"another A from site 'y'.*B from site 'x'"):
        alternate()({"x": of_b, "y": of_a}, {"x": 1.0, "y": 1.0}, previous)
    with pytest.raises(IncompatibleAdapterError, match=r"another A from site 'y'.*B from site 'y'"):
        alternate()({"y": make(4)}, {"y": 1.0}, previous)


@pytest.mark.parametrize("name", sorted(SHARED_A))
def test_merging_with_frozen_a_refuses_nan(name):
    """A NaN in B is named with its site and module."""
    previous, module = make(1), "h.0.q_proj"
    bad = make(2).b[module].clone()
    bad[0, 0] = float("nan")
    site = replace(make(2), a=previous.a)
    with pytest.raises(NonFiniteError, match=r"site 'y', module h\.0\.q_proj"):
        SHARED_A[name](
            {"x": site, "y": replace(site, b={**site.b, module: bad})},
            {"x": 1.0, "y": 1.0},
            previous,
        )


def test_merging_says_which_factors_sites_train():
    """FFA and FedSVD train B in every round, RoLoRA B in even and A in odd ones."""
    for make_rule in (freeze_a, fedsvd, alternate):
        assert isinstance(make_rule(), FactorMerging)
    assert [freeze_a().trains(n) for n in range(2)] == [{"b"}, {"b"}]
    assert [fedsvd().trains(n) for n in range(2)] == [{"b"}, {"b"}]
    assert [alternate().trains(n) for n in range(4)] == [{"b"}, {"a"}, {"b"}, {"a"}]
    assert not isinstance(stack(), FactorMerging)
