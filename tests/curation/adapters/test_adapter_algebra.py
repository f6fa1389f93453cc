"""Laws of adapters: identity, checks, and exact maths on products of factors."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters import checks
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import (
    EmptySelectionError,
    IncompatibleAdapterError,
    NonFiniteError,
    ProtocolError,
)

BASE = "base"


def make(
    seed: int = 0, *, rank: int = 3, scale: float = 2.0, dtype: torch.dtype = torch.float32
) -> Adapter:
    """Two modules, (outputs, inputs) = (7, 5) and (4, 6)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"layer.q_proj": (7, 5), "layer.v_proj": (4, 6)}
    return Adapter(
        base=BASE,
        a={m: torch.randn(rank, i, generator=generator).to(dtype) for m, (_, i) in shapes.items()},
        b={m: torch.randn(o, rank, generator=generator).to(dtype) for m, (o, _) in shapes.items()},
        scales=dict.fromkeys(shapes, scale),
    )


def product(seed: int, outputs: int, inputs: int, rank: int) -> maths.Product:
    """Seeded random factors in float64."""
    generator = torch.Generator().manual_seed(seed)
    return maths.Product(
        left=torch.randn(outputs, rank, generator=generator, dtype=torch.float64),
        right=torch.randn(rank, inputs, generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_adapter_hash_ignores_order_and_layout(dtype):
    """Equal content in another order, or in non-contiguous memory, has the same hash."""
    adapter = make(dtype=dtype)
    other = Adapter(
        base=BASE,
        a={m: adapter.a[m].T.contiguous().T for m in reversed(adapter.modules)},
        b=dict(reversed(adapter.b.items())),
        scales=dict(reversed(adapter.scales.items())),
    )
    assert checks.adapter_hash(adapter) == checks.adapter_hash(other)


def test_adapter_hash_sees_every_part():
    """A changed bit, scale, dtype, shape or name changes the hash; the base does not."""
    adapter = make()
    changed = {m: t.clone() for m, t in adapter.b.items()}
    changed["layer.q_proj"][0, 0] = torch.nextafter(
        changed["layer.q_proj"][0, 0], torch.tensor(math.inf)
    )
    reshaped = dict(adapter.a)
    reshaped["layer.v_proj"] = adapter.a["layer.v_proj"].reshape(6, 3)
    others = [
        replace(adapter, b=changed),
        replace(adapter, scales={**adapter.scales, "layer.v_proj": 2.5}),
        make(dtype=torch.float64),
        Adapter(base=BASE, a=reshaped, b=adapter.b, scales=adapter.scales),
        replace(adapter, a={f"{m}x": t for m, t in adapter.a.items()}),
    ]
    hashes = {checks.adapter_hash(other) for other in [adapter, *others]}
    assert len(hashes) == 1 + len(others)
    assert checks.adapter_hash(replace(adapter, base="elsewhere")) == checks.adapter_hash(adapter)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_check_adapter_refuses_non_finite_by_site_and_module(bad):
    """A NaN or an infinity in a factor or a scale is a NonFiniteError naming site and module."""
    adapter = make()
    broken = adapter.a["layer.v_proj"].clone()
    broken[1, 1] = bad
    for wrong in (
        replace(adapter, a={**adapter.a, "layer.v_proj": broken}),
        replace(adapter, scales={**adapter.scales, "layer.v_proj": bad}),
    ):
        with pytest.raises(NonFiniteError, match=r"'law', module layer\.v_proj"):
            checks.check_adapter(wrong, site="law")


def test_check_adapter_refuses_what_is_no_adapter():
    """No module, a missing part, unequal or zero ranks, a scale of 0: each is named."""
    adapter = make()
    v = "layer.v_proj"
    wrong = {
        "one module": Adapter(base=BASE, a={}, b={}, scales={}),
        "only some": Adapter(base=BASE, a=adapter.a, b=adapter.b, scales={"layer.q_proj": 1.0}),
        "with rank": replace(adapter, a={**adapter.a, v: adapter.a[v][:2]}),
        "rank at least 1": replace(
            adapter,
            a={**adapter.a, v: adapter.a[v][:0]},
            b={**adapter.b, v: adapter.b[v][:, :0]},
        ),
        "above 0": replace(adapter, scales={**adapter.scales, v: 0.0}),
    }
    for case, broken in wrong.items():
        with pytest.raises(IncompatibleAdapterError, match=case):
            checks.check_adapter(broken)


def test_check_compatible_names_site_and_module():
    """Another base, another module or another width is refused with the site's name."""
    adapter = make()
    v = "layer.v_proj"
    without = Adapter(
        base=BASE,
        a={"layer.q_proj": adapter.a["layer.q_proj"]},
        b={"layer.q_proj": adapter.b["layer.q_proj"]},
        scales={"layer.q_proj": 2.0},
    )
    wide = replace(adapter, a={**adapter.a, v: torch.zeros(3, 9)})
    for wrong, words in (
        (replace(adapter, base="other"), "expected base base, got other"),
        (without, f"differing in {v}"),
        (wide, f"module {v}"),
    ):
        with pytest.raises(IncompatibleAdapterError, match="site 'b'") as caught:
            checks.check_compatible({"a": adapter, "b": wrong}, adapter)
        assert words in str(caught.value)
    checks.check_compatible({"a": make(1, rank=5, scale=0.5)}, adapter)


def test_shares_sum_to_one_over_sites_with_an_adapter():
    """Weights are normalised over sites with an adapter and a weight, in sorted order."""
    adapter = make()
    used = checks.normalise_weights(
        {"c": adapter, "a": adapter, "b": adapter}, {"a": 1.0, "b": 0.0, "c": 3.0, "d": 9.0}
    )
    assert list(used.items()) == [("a", 0.25), ("c", 0.75)]


def test_shares_refuses_what_is_no_weight():
    """No weight above 0, a NaN and a negative weight are named errors."""
    adapter = make()
    with pytest.raises(EmptySelectionError):
        checks.normalise_weights({"a": adapter}, {"a": 0.0})
    with pytest.raises(EmptySelectionError):
        checks.normalise_weights({}, {"a": 1.0})
    with pytest.raises(NonFiniteError, match="site 'a'"):
        checks.normalise_weights({"a": adapter}, {"a": math.nan})
    with pytest.raises(ProtocolError, match="site 'a'"):
        checks.normalise_weights({"a": adapter}, {"a": -1.0})


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    outputs=st.integers(1, 12),
    inputs=st.integers(1, 12),
    rank=st.integers(1, 16),
)
def test_decompose_is_the_dense_svd(seed, outputs, inputs, rank):
    """Singular values and product equal those of the dense matrix, also where rank > size."""
    factors = product(seed, outputs, inputs, rank)
    dense = factors.left @ factors.right
    spectrum = maths.decompose(factors)
    rebuilt = spectrum.u @ torch.diag(spectrum.values) @ spectrum.vt
    torch.testing.assert_close(rebuilt, dense, rtol=1e-11, atol=1e-11)  # fp64
    k = min(outputs, inputs, rank)
    torch.testing.assert_close(
        spectrum.values[:k], torch.linalg.svdvals(dense)[:k], rtol=1e-9, atol=1e-11
    )
    assert maths.norm(factors) == pytest.approx(float(torch.linalg.matrix_norm(dense)), rel=1e-12)


def test_decompose_fixes_signs():
    """Flipping both factors' signs gives the same vectors; each right vector's peak is positive."""
    factors = product(3, 8, 6, 4)
    flipped = maths.Product(left=-factors.left, right=-factors.right)
    one, other = maths.decompose(factors), maths.decompose(flipped)
    torch.testing.assert_close(one.vt, other.vt, rtol=1e-10, atol=1e-12)
    peaks = one.vt.gather(1, one.vt.abs().argmax(dim=1, keepdim=True))
    assert bool((peaks > 0).all())


@pytest.mark.parametrize("keep", [0, 2, 9])
def test_decompose_keeps_the_first_vectors_and_all_values(keep):
    """Fewer vectors are those of the whole decomposition; singular values are all there."""
    factors = product(3, 8, 6, 4)
    whole, few = maths.decompose(factors), maths.decompose(factors, keep=keep)
    torch.testing.assert_close(few.u, whole.u[:, :keep], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(few.vt, whole.vt[:keep], rtol=1e-12, atol=1e-14)
    assert torch.equal(few.values, whole.values)


def test_target_is_the_weighted_sum_of_scaled_products():
    """Mixed ranks and scales: ΔW* equals the dense sum."""
    sites = {"a": make(1, rank=2, scale=0.5), "b": make(2, rank=4, scale=3.0)}
    weights = {"a": 0.3, "b": 0.7}
    for module in sites["a"].modules:
        dense = sum(
            weights[s] * x.scales[module] * (x.b[module].double() @ x.a[module].double())
            for s, x in sites.items()
        )
        stacked = maths.target(sites, weights, module)
        torch.testing.assert_close(stacked.left @ stacked.right, dense, rtol=1e-12, atol=1e-12)
