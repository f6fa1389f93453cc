"""Laws of merging that hold for every rule on factors, and those of the first three."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from merging_cases import SHAPES, apart, best, dense, federations, goal, make, whole

from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import (
    EmptySelectionError,
    IncompatibleAdapterError,
    NonFiniteError,
)
from fedwinnow.strategies.merge_maths.factor_averages import average_both_factors
from fedwinnow.strategies.merging.core_svd import core_svd
from fedwinnow.strategies.merging.dare import dare
from fedwinnow.strategies.merging.dare_ties import dare_ties
from fedwinnow.strategies.merging.fedavg_factors import fedavg_factors
from fedwinnow.strategies.merging.fedex import fedex
from fedwinnow.strategies.merging.flora import flora
from fedwinnow.strategies.merging.knots import knots
from fedwinnow.strategies.merging.linear import linear
from fedwinnow.strategies.merging.stack import stack
from fedwinnow.strategies.merging.ties import ties

RULES = {
    "stack": stack(),
    "core_svd": core_svd(),
    "fedavg_factors": fedavg_factors(),
    "flora": flora(),
    "fedex": fedex(),
    "linear": linear(),
    "ties": ties(density=1.0),
    "dare": dare(density=1.0),
    "dare_ties": dare_ties(density=1.0),
    "knots": knots(density=1.0),
}
"""Rules for any sites; those with one shared factor have their own file."""


@settings(deadline=None, max_examples=40)
@given(federation=federations())
def test_stack_is_exact(federation):
    """Stack equals dense float64 ΔW* to 1e-6, whatever the ranks and scales; rank is the sum."""
    sites, weights, previous = federation
    merged = stack()(sites, weights, previous)
    for module in SHAPES:
        distance = apart(dense(merged.adapter, module), goal(sites, weights, module))
        assert distance <= 1e-6  # float32 factors
        assert merged.adapter.a[module].shape[0] == sum(
            x.a[module].shape[0] for x in sites.values()
        )
    assert merged.adapter.scales == previous.scales


@settings(deadline=None, max_examples=40)
@given(federation=federations(), rank=st.integers(0, 8))
def test_core_svd_is_the_dense_truncated_svd(federation, rank):
    """Product and discarded energy equal those of the dense SVD cut at the rank."""
    sites, weights, previous = federation
    merged = core_svd(rank=rank)(sites, weights, previous)
    lost = whole = 0.0
    for module in SHAPES:
        size = min(rank, *SHAPES[module]) if rank else previous.a[module].shape[0]
        wanted = goal(sites, weights, module)
        values = torch.linalg.svdvals(wanted)
        if size < len(values) and values[size] > 1e-9 * values[0]:
            assume(bool(values[size] < 0.99 * values[size - 1]))  # else the cut is not unique
        assert apart(dense(merged.adapter, module), best(wanted, size)) <= 1e-5  # float32 factors
        assert merged.adapter.a[module].shape[0] == size
        lost += float(values[size:].square().sum())
        whole += float(values.square().sum())
    assert merged.report["discarded_energy"] == pytest.approx(lost / whole, abs=1e-12)
    assert merged.report["target_norm"] == pytest.approx(math.sqrt(whole), rel=1e-9)
    assert merged.adapter.scales == previous.scales


@settings(deadline=None, max_examples=40)
@given(federation=federations())
def test_fedavg_factors_error_is_the_factor_covariance(federation):
    """The reported error is the dense distance to ΔW*, for mixed ranks and scales too."""
    sites, weights, previous = federation
    merged = fedavg_factors()(sites, weights, previous)
    square = whole = 0.0
    for module in SHAPES:
        wanted = goal(sites, weights, module)
        square += float((wanted - dense(merged.adapter, module)).norm()) ** 2
        whole += float(wanted.norm()) ** 2
    assert merged.report["error_norm"] == pytest.approx(
        math.sqrt(square), rel=1e-5, abs=1e-6 * math.sqrt(whole)
    )
    assert merged.report["relative_error"] == pytest.approx(
        math.sqrt(square / whole), rel=1e-5, abs=1e-6
    )


@given(federation=federations())
def test_factor_covariance_is_what_averages_miss(federation):
    """s B̄ Ā + s Σ p_i (B_i − B̄)(A_i − Ā) = ΔW*, entry by entry, for mixed ranks and scales too."""
    sites, weights, _ = federation
    total = sum(weights.values())
    shares = {s: w / total for s, w in weights.items()}
    for module in SHAPES:
        both = average_both_factors(sites, shares, module)
        found = sum(x.left @ x.right for x in (both.mean, both.covariance))
        torch.testing.assert_close(found, goal(sites, weights, module), rtol=1e-9, atol=1e-9)


def test_fedavg_factors_averages_entry_by_entry():
    """With equal ranks and scales the factors are the weighted means (FedIT)."""
    sites = {"a": make(1), "b": make(2)}
    merged = fedavg_factors()(sites, {"a": 1.0, "b": 3.0}, make(3)).adapter
    for module in SHAPES:
        for kind in ("a", "b"):
            mean = (
                0.25 * getattr(sites["a"], kind)[module] + 0.75 * getattr(sites["b"], kind)[module]
            )
            torch.testing.assert_close(getattr(merged, kind)[module], mean)


def test_fedavg_factors_is_exact_for_equal_a():
    """Where all sites hold the same A the covariance, and so the error, is 0."""
    one = make(1)
    sites = {"a": one, "b": replace(make(2), a=one.a)}
    report = fedavg_factors()(sites, {"a": 1.0, "b": 1.0}, one).report
    assert report["error_norm"] < 1e-12
    assert report["target_norm"] > 0.1


@pytest.mark.parametrize("name", sorted(RULES))
def test_merging_of_one_site_is_the_identity(name):
    """One site's adapter comes back as a product, whatever its scale and weight."""
    site = make(5, rank=4, scale=0.7)
    merged = RULES[name]({"only": site}, {"only": 0.2}, make(6, rank=4, scale=2.0))
    for module in SHAPES:
        assert apart(whole(merged, module), dense(site, module)) < 1e-6


@pytest.mark.parametrize("name", sorted(RULES))
def test_merging_ignores_order_of_arrival(name):
    """The same sites in another order give the bit-identical adapter."""
    sites = {f"s{i}": make(i) for i in range(4)}
    weights = {f"s{i}": 0.1 + 0.2 * i for i in range(4)}
    previous = make(9)
    one = RULES[name](sites, weights, previous)
    other = RULES[name](
        dict(reversed(sites.items())), dict(sorted(weights.items(), reverse=True)), previous
    )
    assert adapter_hash(one.adapter) == adapter_hash(other.adapter)
    assert one.report == other.report
    assert (one.change is None) == (other.change is None)
    if one.change is not None:
        assert adapter_hash(one.change) == adapter_hash(other.change)


@pytest.mark.parametrize("name", sorted(RULES))
def test_merging_ignores_sites_of_weight_zero(name):
    """A site without weight changes nothing, not even the rank; weights need not sum to 1."""
    sites = {"a": make(1), "b": make(2), "c": make(3, rank=8)}
    previous = make(9)
    with_c = RULES[name](sites, {"a": 2.0, "b": 6.0, "c": 0.0, "absent": 5.0}, previous)
    without = RULES[name]({s: sites[s] for s in "ab"}, {"a": 0.25, "b": 0.75}, previous)
    assert adapter_hash(with_c.adapter) == adapter_hash(without.adapter)


@pytest.mark.parametrize("name", sorted(RULES))
def test_merging_refuses_by_name(name):
    """NaN, another base, another width, and no weight at all are named errors."""
    good, previous = make(1), make(9)
    module = "h.0.v_proj"
    nan = good.b[module].clone()
    nan[0, 0] = math.nan
    weights = {"x": 1.0, "y": 1.0}
    rule = RULES[name]
    with pytest.raises(NonFiniteError, match=r"site 'y', module h\.0\.v_proj"):
        rule({"x": good, "y": replace(good, b={**good.b, module: nan})}, weights, previous)
    with pytest.raises(IncompatibleAdapterError, match="site 'y'"):
        rule({"x": good, "y": replace(good, base="other")}, weights, previous)
    wide = replace(good, a={**good.a, module: torch.zeros(3, 13)})
    with pytest.raises(IncompatibleAdapterError, match=r"site 'y', module h\.0\.v_proj"):
        rule({"x": good, "y": wide}, weights, previous)
    with pytest.raises(EmptySelectionError):
        rule({"x": good}, {"x": 0.0}, previous)
    with pytest.raises(EmptySelectionError):
        rule({}, {}, previous)


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_keeps_the_dtype(name, dtype):
    """Maths is in float64; the result has the previous adapter's dtype."""

    def cast(adapter):
        return replace(
            adapter,
            a={m: t.to(dtype) for m, t in adapter.a.items()},
            b={m: t.to(dtype) for m, t in adapter.b.items()},
        )

    sites = {"a": cast(make(1)), "b": cast(make(3))}
    merged = RULES[name](sites, {"a": 1.0, "b": 1.0}, cast(make(2)))
    for one in (merged.adapter, merged.change or merged.adapter):
        assert {t.dtype for t in (*one.a.values(), *one.b.values())} == {dtype}


@pytest.mark.parametrize("name", sorted(RULES))
def test_merging_of_zero_updates_stays_trainable(name):
    """B = 0 everywhere merges to a zero update whose A is not 0; nothing counts as discarded."""
    start = make(1, zero=True)
    merged = RULES[name]({"a": start, "b": start}, {"a": 1.0, "b": 1.0}, start)
    for module in SHAPES:
        assert bool((merged.adapter.b[module] == 0).all())
        assert bool((merged.adapter.a[module].abs().sum(dim=1) > 0).all())
    assert merged.change is None
    assert merged.report["target_norm"] == 0
    assert merged.report.get("discarded_energy", 0.0) == 0.0
    assert "relative_error" not in merged.report


def test_core_svd_of_a_zero_update_is_the_previous_adapter():
    """Nothing learnt, nothing changed: A comes back as it was, bit for bit."""
    start = make(1, zero=True)
    merged = core_svd()({"a": make(2, zero=True)}, {"a": 1.0}, start).adapter
    assert adapter_hash(merged) == adapter_hash(start)


def test_core_svd_fills_unused_directions_with_previous_rows():
    """A rank-1 update uses one row; the others are rows of the previous A with zero B."""
    previous = make(7, rank=4)
    merged = core_svd()({"a": make(1, rank=1)}, {"a": 1.0}, previous).adapter
    for module in SHAPES:
        assert bool((merged.b[module][:, 1:] == 0).all())
        for row in merged.a[module][1:]:
            assert any(torch.equal(row, old) for old in previous.a[module])
        assert len({tuple(row.tolist()) for row in merged.a[module]}) == 4


def test_core_svd_grows_beyond_the_previous_rows_without_repeats():
    """Where the previous A has too few rows, new ones differ and repeat on every call."""
    previous = make(7, rank=2)
    rule = core_svd(rank=6)
    merged = rule({"a": make(1, rank=1)}, {"a": 1.0}, previous).adapter
    again = rule({"a": make(1, rank=1)}, {"a": 1.0}, previous).adapter
    assert adapter_hash(merged) == adapter_hash(again)
    for module in SHAPES:
        assert int(torch.linalg.matrix_rank(merged.a[module])) == min(6, *SHAPES[module])


def test_core_svd_keeps_the_row_length_of_a():
    """Rows of the merged A have the root mean square length of the previous rows."""
    previous = make(7)
    merged = core_svd()({"a": make(1), "b": make(2)}, {"a": 1.0, "b": 1.0}, previous).adapter
    for module in SHAPES:
        length = previous.a[module].square().sum(dim=1).mean().sqrt()
        torch.testing.assert_close(
            merged.a[module].norm(dim=1), length.expand(3), rtol=1e-5, atol=0.0
        )


def test_core_svd_refuses_a_negative_rank():
    """A rank below 0 is refused with the range."""
    with pytest.raises(ValueError, match="at least 1"):
        core_svd(rank=-1)


def test_core_svd_never_forms_the_dense_product():
    """4096 × 4096 with eight sites of rank 16 takes seconds, not minutes (no dense SVD)."""
    generator = torch.Generator().manual_seed(0)
    size = 4096

    def big() -> Adapter:
        return Adapter(
            base="base",
            a={"m": torch.randn(16, size, generator=generator)},
            b={"m": torch.randn(size, 16, generator=generator)},
            scales={"m": 2.0},
        )

    sites = {str(i): big() for i in range(8)}
    merged = core_svd()(sites, dict.fromkeys(sites, 1.0), big())
    assert merged.adapter.b["m"].shape == (size, 16)
    assert 0.5 < merged.report["discarded_energy"] < 1


@pytest.mark.parametrize("name", ["core_svd", "linear", "ties", "dare", "dare_ties", "knots"])
def test_a_rank_beyond_the_matrix_is_the_matrix_own(name):
    """rank = 100000 gives, bit for bit, what the full rank of the smallest matrix side gives."""
    sites = {"x": make(1), "y": make(2)}
    maker = {"core_svd": core_svd, "linear": linear, "ties": ties, "dare": dare,
             "dare_ties": dare_ties, "knots": knots}[name]  # fmt: skip
    merged = maker(rank=100_000)(sites, {"x": 0.5, "y": 0.5}, make(0))
    for module, (outputs, inputs) in SHAPES.items():
        assert merged.adapter.a[module].shape[0] == min(outputs, inputs)
        full = maker(rank=min(outputs, inputs))(sites, {"x": 0.5, "y": 0.5}, make(0)).adapter
        assert torch.equal(merged.adapter.b[module], full.b[module])
