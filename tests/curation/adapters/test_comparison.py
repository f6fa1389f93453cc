"""Laws of the comparison of two adapters, against dense matrices."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.curation.adapters.comparison import compare
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import IncompatibleAdapterError, NonFiniteError

SHAPES = {"layers.0.q": (6, 5), "layers.1.v": (4, 7)}


def adapter(seed, *, rank=2, scale=1.5) -> Adapter:
    """Random float64 factors."""
    draw = torch.Generator().manual_seed(seed)
    shape = {"generator": draw, "dtype": torch.float64}
    return Adapter(
        base="base",
        a={m: torch.randn(rank, n, **shape) for m, (_, n) in SHAPES.items()},
        b={m: torch.randn(k, rank, **shape) for m, (k, _) in SHAPES.items()},
        scales=dict.fromkeys(SHAPES, scale),
    )


def dense(one: Adapter, module: str) -> np.ndarray:
    """s B A."""
    return one.scales[module] * (one.b[module] @ one.a[module]).numpy()


seeds = st.integers(0, 10_000)
ranks = st.integers(1, 4)


@given(seeds, ranks, ranks, st.floats(0.1, 9.0))
def test_comparison_is_that_of_the_dense_matrices(seed, first, second, scale):
    """Norms, angles and energies equal what numpy gives on the products themselves."""
    one, other = adapter(seed, rank=first), adapter(seed + 1, rank=second, scale=scale)
    found = compare(one, other, rank=2)
    inner, squares = 0.0, np.zeros(2)
    for module, said in found.modules.items():
        p, q = dense(one, module), dense(other, module)
        norms = np.linalg.norm(p), np.linalg.norm(q)
        np.testing.assert_allclose(said.norms, norms, rtol=1e-10)
        cosine = np.clip((p * q).sum() / norms[0] / norms[1], -1, 1)
        assert said.angle == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-5)
        values = np.linalg.svd(np.hstack([p / norms[0], q / norms[1]]), compute_uv=False) ** 2
        assert said.outside == pytest.approx(values[2:].sum() / values.sum(), abs=1e-10)
        values = np.linalg.svd((p + q) / 2, compute_uv=False) ** 2
        assert said.discarded == pytest.approx(values[2:].sum() / values.sum(), abs=1e-10)
        inner += (p * q).sum()
        squares += np.square(norms)
    cosine = np.clip(inner / np.sqrt(squares.prod()), -1, 1)
    assert found.angle == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-5)


@given(seeds, ranks)
def test_comparison_with_itself_is_nothing(seed, rank):
    """An adapter differs from itself by angle 0, and no energy lies outside its own rank."""
    one = adapter(seed, rank=rank)
    found = compare(one, one)
    assert found.angle == pytest.approx(0, abs=1e-9)
    for said in found.modules.values():
        assert said.angle == pytest.approx(0, abs=1e-9)
        assert max(said.output_angles + said.input_angles) == pytest.approx(0, abs=1e-5)
        assert said.outside == pytest.approx(0, abs=1e-12)
        assert said.discarded == pytest.approx(0, abs=1e-12)


@given(seeds, ranks)
def test_comparison_with_the_negative_is_180_degrees(seed, rank):
    """The same spaces, the opposite direction; their mean is 0, and what it loses undefined."""
    one = adapter(seed, rank=rank)
    found = compare(one, replace(one, b={m: -factor for m, factor in one.b.items()}))
    assert found.angle == pytest.approx(180, abs=1e-9)
    for said in found.modules.values():
        assert said.angle == pytest.approx(180, abs=1e-9)
        assert max(said.output_angles) == pytest.approx(0, abs=1e-5)
        assert said.discarded is None


@given(seeds, ranks, st.floats(0.5, 2.0))
def test_comparison_sees_products_not_factors(seed, rank, stretch):
    """(B R, R⁻¹ A) with any invertible R is the same adapter, at angle 0."""
    one = adapter(seed, rank=rank)
    draw = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(rank, rank, generator=draw, dtype=torch.float64))
    turn = turn * stretch
    other = replace(
        one,
        a={m: torch.linalg.inv(turn) @ factor for m, factor in one.a.items()},
        b={m: factor @ turn for m, factor in one.b.items()},
    )
    found = compare(one, other)
    for said in found.modules.values():
        assert said.angle == pytest.approx(0, abs=1e-6)
        assert max(said.output_angles + said.input_angles) == pytest.approx(0, abs=1e-5)


def test_comparison_of_a_zero_update_defines_no_angle():
    """B = 0 has a norm of 0 and neither angle nor space; nothing becomes NaN."""
    one = adapter(1)
    zero = replace(one, b={m: torch.zeros_like(factor) for m, factor in one.b.items()})
    found = compare(one, zero)
    assert found.norms[1] == 0
    assert found.angle is None
    for said in found.modules.values():
        assert (said.angle, said.outside, said.output_angles) == (None, None, ())
        assert said.discarded == pytest.approx(0, abs=1e-12)


def test_comparison_counts_modules_of_one_adapter_alone():
    """What one adapter lacks is listed, and counts as a zero update in the whole angle."""
    one, other = adapter(1), adapter(1)
    less = Adapter(
        base="base",
        a={"layers.0.q": other.a["layers.0.q"]},
        b={"layers.0.q": other.b["layers.0.q"]},
        scales={"layers.0.q": 1.5},
    )
    found = compare(one, less)
    assert list(found.modules) == ["layers.0.q"]
    assert list(found.alone[0]) == ["layers.1.v"]
    assert found.alone[1] == {}
    cosine = np.linalg.norm(dense(one, "layers.0.q")) / found.norms[0]
    assert found.angle == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-6)


def test_comparison_refuses_what_is_not_alike():
    """No common module, other shapes, or a NaN are errors that name the module."""
    one = adapter(1)
    other = Adapter(
        base="base", a={"x": torch.ones(1, 2)}, b={"x": torch.ones(2, 1)}, scales={"x": 1.0}
    )
    with pytest.raises(IncompatibleAdapterError, match="module that both change"):
        compare(one, other)
    wide = replace(one, a={m: torch.ones(2, 9, dtype=torch.float64) for m in SHAPES})
    with pytest.raises(IncompatibleAdapterError, match=r"layers\.0\.q.*\(6, 5\)"):
        compare(one, wide)
    spoilt = replace(one, a={m: factor * torch.nan for m, factor in one.a.items()})
    with pytest.raises(NonFiniteError, match="the second"):
        compare(one, spoilt)
