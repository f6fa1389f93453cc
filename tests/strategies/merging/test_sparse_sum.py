"""Laws of the sparse sum: equal to the dense sum, supports, overlap, refusals."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from merging_cases import make

from fedwinnow.curation.datatypes import SparseAdapter
from fedwinnow.curation.errors import EmptySelectionError, IncompatibleAdapterError, NonFiniteError
from fedwinnow.strategies.interfaces.merging import FactorMerging, SparseMerging
from fedwinnow.strategies.merging.sparse_sum import sparse_sum

SHAPES = {"h.0.weight": (4, 5), "h.1.bias": (7,)}
SIZE = 27


def sparse(places: dict[str, dict[int, float]], dtype=torch.float32) -> SparseAdapter:
    """An adapter from parameter → place → value."""
    ordered = {name: sorted(held.items()) for name, held in places.items()}
    return SparseAdapter(
        base="base",
        indices={n: torch.tensor([k for k, _ in x], dtype=torch.int64) for n, x in ordered.items()},
        values={n: torch.tensor([v for _, v in x], dtype=dtype) for n, x in ordered.items()},
        shapes={n: SHAPES[n] for n in ordered},
    )


def dense(adapter: SparseAdapter, name: str) -> torch.Tensor:
    """The difference of one parameter, in float64; 0 where the adapter does not hold it."""
    found = torch.zeros(math.prod(SHAPES[name]), dtype=torch.float64)
    if name in adapter.indices:
        found[adapter.indices[name]] = adapter.values[name].double()
    return found.reshape(SHAPES[name])


def supports():
    """Parameter → place → value, for any support; parameters may be left out."""
    held = {
        n: st.dictionaries(st.integers(0, math.prod(s) - 1), st.floats(-4, 4, width=32))
        for n, s in SHAPES.items()
    }
    return st.fixed_dictionaries({}, optional=held)


NOTHING = sparse({name: {} for name in SHAPES})


@given(
    sites=st.lists(supports(), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.05, 1.0), min_size=4, max_size=4),
    before=st.sampled_from(
        [NOTHING, sparse({"h.0.weight": {3: 1.0, 19: -2.0}, "h.1.bias": {0: 0.5}})]
    ),
    scale=st.sampled_from([1.0, 0.5, 3.0]),
)
def test_sparse_sum_is_the_dense_sum(sites, weights, before, scale):
    """δ + λ Σ p_i (δ_i − δ) on dense matrices, to float32; order of arrival changes nothing."""
    sites = [sparse(held) for held in sites]
    named = {f"s{i}": x for i, x in enumerate(sites)}
    given_ = {f"s{i}": weights[i] for i in range(len(sites))}
    rule = sparse_sum(density=1.0, scale=scale)
    merged = rule(named, given_, before)
    again = rule(dict(reversed(named.items())), given_, before)
    total = sum(given_.values())
    for name in SHAPES:
        mean = sum(given_[s] / total * dense(x, name) for s, x in named.items())
        wanted = dense(before, name) + scale * (mean - dense(before, name))
        torch.testing.assert_close(dense(merged.adapter, name), wanted, rtol=1e-6, atol=1e-5)
        union = {int(k) for x in sites for k in x.indices.get(name, [])}
        if scale != 1:
            union |= {int(k) for k in before.indices[name]}
        assert merged.adapter.indices[name].tolist() == sorted(union)
        assert torch.equal(merged.adapter.values[name], again.adapter.values[name])
    assert merged.report == again.report


@given(sites=st.lists(supports(), min_size=2, max_size=4))
def test_sparse_sum_overlap_is_that_of_the_pairs(sites):
    """Shared over held places, summed over all pairs; and over what random supports share."""
    sites = [sparse(held) for held in sites]
    named = {f"s{i}": x for i, x in enumerate(sites)}
    report = sparse_sum(density=1.0)(named, dict.fromkeys(named, 1.0), NOTHING).report
    held = [{(n, int(k)) for n in x.indices for k in x.indices[n]} for x in sites]
    pairs = [(a, b) for i, a in enumerate(held) for b in held[:i]]
    both = sum(len(a & b) for a, b in pairs)
    either = sum(len(a | b) for a, b in pairs)
    chance = sum(len(a) * len(b) / SIZE for a, b in pairs)
    assert ("overlap" in report) == (chance > 0)
    if chance > 0:
        assert report["overlap"] == pytest.approx(both / either)
        assert report["overlap_over_chance"] == pytest.approx(both / chance)


def test_sparse_sum_of_one_site_is_its_own():
    """One site comes back as it is, with its entries and norm, and no overlap to speak of."""
    one = sparse({"h.0.weight": {2: 3.0}, "h.1.bias": {6: -4.0}})
    merged = sparse_sum(density=0.1)({"a": one}, {"a": 0.2}, NOTHING)
    for name in SHAPES:
        assert torch.equal(merged.adapter.indices[name], one.indices[name])
        assert torch.equal(merged.adapter.values[name], one.values[name])
    assert merged.report == {"entries": 2.0, "density": 2 / 27, "target_norm": 5.0}


def test_sparse_sum_of_no_update_is_nothing():
    """Sites without an entry merge to no entry; a site of weight 0 changes nothing."""
    rule, other = sparse_sum(), sparse({"h.0.weight": {1: 1.0}})
    merged = rule({"a": NOTHING, "b": other}, {"a": 1.0, "b": 0.0}, NOTHING)
    assert merged.report == {"entries": 0.0, "density": 0.0, "target_norm": 0.0}
    assert not merged.adapter.indices["h.0.weight"].numel()


def test_sparse_sum_has_a_protocol_of_its_own():
    """A run can tell it from rules on factors: it has a density, and they have none."""
    assert isinstance(sparse_sum(), SparseMerging)
    assert sparse_sum().density == 0.01
    assert not isinstance(sparse_sum(), FactorMerging)


def test_sparse_sum_refuses_lora_factors_by_name():
    """An adapter of factors is named with its site, and another rule is suggested."""
    with pytest.raises(IncompatibleAdapterError, match=r"site 'x': .*LoRA factors.*core_svd"):
        sparse_sum()({"x": make(1)}, {"x": 1.0}, NOTHING)
    with pytest.raises(IncompatibleAdapterError, match=r"^adapter: .*LoRA factors"):
        sparse_sum()({"x": NOTHING}, {"x": 1.0}, make(1))


def bad(**changes):
    """A good adapter with something changed."""
    return replace(sparse({"h.0.weight": {2: 1.0, 5: 2.0}}), **changes)


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        (bad(base="other"), "expected base base, got other"),
        (bad(indices={"h.0.weight": torch.tensor([5, 2])}), "strictly ascending"),
        (bad(indices={"h.0.weight": torch.tensor([2, 2])}), "add up duplicates"),
        (bad(indices={"h.0.weight": torch.tensor([2, 20])}), "from 0 to 19"),
        (bad(indices={"h.0.weight": torch.tensor([-1, 2])}), "from 0 to 19"),
        (bad(indices={"h.0.weight": torch.tensor([2])}), "as many floating-point values"),
        (bad(values={}), "only some of"),
        (bad(shapes={"h.0.weight": (5, 4)}), r"expected shape \(4, 5\), got \(5, 4\)"),
        (
            SparseAdapter(
                base="base",
                indices={"h.9": torch.tensor([0])},
                values={"h.9": torch.tensor([1.0])},
                shapes={"h.9": (1,)},
            ),
            "no parameter of the adapter sent",
        ),
    ],
)
def test_sparse_sum_refuses_by_name(adapter, words):
    """Another base, shape or parameter, and indices out of order or range, name the site."""
    good = sparse({"h.1.bias": {0: 1.0}})
    with pytest.raises(IncompatibleAdapterError, match=f"site 'y'.*{words}"):
        sparse_sum(density=1.0)({"x": good, "y": adapter}, {"x": 1.0, "y": 1.0}, NOTHING)


def test_sparse_sum_refuses_nan_and_crowds():
    """NaN, more entries than the density allows, and no weight at all are named errors."""
    nan = bad(values={"h.0.weight": torch.tensor([math.nan, 1.0])})
    with pytest.raises(NonFiniteError, match=r"site 'y', parameter h\.0\.weight"):
        sparse_sum()({"y": nan}, {"y": 1.0}, NOTHING)
    with pytest.raises(IncompatibleAdapterError, match=r"site 'y'.*at most 0\.01 of 27 entries"):
        sparse_sum()({"y": bad()}, {"y": 1.0}, NOTHING)
    with pytest.raises(EmptySelectionError):
        sparse_sum()({"y": NOTHING}, {"y": 0.0}, NOTHING)
    with pytest.raises(ValueError, match=r"density = 0\.0"):
        sparse_sum(density=0.0)
