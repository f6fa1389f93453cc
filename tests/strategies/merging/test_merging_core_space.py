"""Laws of the rules that bend the mean: slow, obvious computations on dense matrices and loops."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from merging_cases import SHAPES, apart, best, dense, federations, goal, make

from fedwinnow.curation.adapters.algebra import delta
from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.strategies.merge_maths.core_space import to_core_space
from fedwinnow.strategies.merge_maths.sparsify import drop_at_random, elect_sign, trim
from fedwinnow.strategies.merge_maths.task_vectors import previous_product
from fedwinnow.strategies.merging.core_svd import core_svd
from fedwinnow.strategies.merging.dare import dare, drop_seed
from fedwinnow.strategies.merging.dare_ties import dare_ties
from fedwinnow.strategies.merging.knots import knots
from fedwinnow.strategies.merging.linear import linear
from fedwinnow.strategies.merging.ties import ties

FULL = 24
"""A rank at which nothing is cut."""


def slow_trim(matrix, density):
    """Entry by entry: 0 unless among the ⌈density · number⌉ largest by size."""
    keep = math.ceil(density * matrix.numel())
    floor = sorted((abs(float(x)) for x in matrix.flatten()), reverse=True)[keep - 1]
    return torch.tensor([[float(x) if abs(x) >= floor else 0.0 for x in row] for row in matrix])


def slow_elect(matrices, shares):
    """Entry by entry: the weighted mean of those whose sign is that of the weighted sum."""
    found = torch.zeros_like(matrices[0])
    for place in [(i, j) for i in range(found.shape[0]) for j in range(found.shape[1])]:
        values = [float(matrix[place]) for matrix in matrices]
        mass = sum(p * v for p, v in zip(shares, values, strict=True))
        agree = [(p, v) for p, v in zip(shares, values, strict=True) if v * mass > 0]
        if agree:
            found[place] = sum(p * v for p, v in agree) / sum(p for p, _ in agree)
    return found


def slow_basis(blocks):
    """Left singular vectors of dense blocks side by side, those above rounding."""
    u, values, _ = torch.linalg.svd(torch.cat(blocks, dim=1), full_matrices=False)
    return u[:, values > 1e-12 * values[0]]


def vectors(sites, weights, previous, module):
    """Dense task vectors in sorted order of site, and their shares."""
    names = sorted(sites)
    total = sum(weights[s] for s in names)
    taus = [dense(sites[s], module) - dense(previous, module) for s in names]
    return taus, [weights[s] / total for s in names]


def slow_core(sites, weights, previous, module, rule):
    """s B A + U rule(Uᵀ τ_i V) Vᵀ with dense task vectors and a dense SVD for the bases."""
    taus, shares = vectors(sites, weights, previous, module)
    stacked = [sites[s] for s in sorted(sites)]
    stacked += [previous] if bool(previous.b[module].any()) else []
    u = slow_basis([x.scales[module] * x.b[module].double() for x in stacked])
    v = slow_basis([x.a[module].double().T for x in stacked])
    merged = rule([u.T @ tau @ v for tau in taus], shares)
    return dense(previous, module) + u @ merged.double() @ v.T


def started(federation, zero):
    """The federation with a previous adapter of B = 0, or as it is."""
    sites, weights, previous = federation
    if zero:
        previous = replace(previous, b={m: torch.zeros_like(x) for m, x in previous.b.items()})
    return sites, weights, previous


@settings(max_examples=25)
@given(
    federation=federations(),
    zero=st.booleans(),
    density=st.floats(0.1, 1.0),
    scale=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_ties_is_the_slow_computation_in_core_space(federation, zero, density, scale):
    """Trim, elect and mean by loops over cores from dense SVDs give the same product."""
    sites, weights, previous = started(federation, zero)
    merged = ties(density=density, scale=scale, rank=FULL)(sites, weights, previous)

    def rule(cores, shares):
        return scale * slow_elect([slow_trim(core, density).double() for core in cores], shares)

    for module in SHAPES:
        wanted = slow_core(sites, weights, previous, module, rule)
        assert apart(dense(merged.adapter, module), wanted) < 1e-5


@settings(max_examples=25)
@given(
    federation=federations(),
    zero=st.booleans(),
    density=st.floats(0.3, 1.0),
    elect=st.booleans(),
    seed=st.integers(0, 5),
)
def test_dare_is_the_slow_computation_in_core_space(federation, zero, density, elect, seed):
    """Masks drawn again from the same seeds, entry by entry, give the same product."""
    sites, weights, previous = started(federation, zero)
    make_rule = dare_ties if elect else dare
    merged = make_rule(density=density, rank=FULL, seed=seed)(sites, weights, previous)
    names, at_start = sorted(sites), adapter_hash(previous)
    for module in SHAPES:

        def rule(cores, shares, module=module):
            kept = []
            for name, core in zip(names, cores, strict=True):
                draw = torch.Generator().manual_seed(drop_seed(seed, at_start, module, name))
                mask = torch.rand(core.shape, generator=draw, dtype=torch.float64) < density
                kept.append(torch.where(mask, core / density, 0.0))
            if elect:
                return slow_elect(kept, shares)
            return sum(p * core for p, core in zip(shares, kept, strict=True))

        wanted = slow_core(sites, weights, previous, module, rule)
        assume(bool(wanted.norm() > 0))  # else every entry of a small core was dropped
        distance = (dense(merged.adapter, module) - wanted).norm()
        assert float(distance) < 1e-5 * float(goal(sites, weights, module).norm() + wanted.norm())


@settings(max_examples=25)
@given(federation=federations(), zero=st.booleans(), density=st.floats(0.1, 1.0))
def test_knots_is_the_slow_computation_on_dense_matrices(federation, zero, density):
    """A dense SVD of the dense task vectors side by side, loops for TIES: the same product."""
    sites, weights, previous = started(federation, zero)
    merged = knots(density=density, rank=FULL)(sites, weights, previous)
    for module in SHAPES:
        taus, shares = vectors(sites, weights, previous, module)
        u, values, vt = torch.linalg.svd(torch.cat(taus, dim=1), full_matrices=False)
        used = int((values > 1e-7 * values[0]).sum())
        parts = torch.split(vt[:used], SHAPES[module][1], dim=1)
        kept = slow_elect([slow_trim(part, density).double() for part in parts], shares)
        wanted = dense(previous, module) + u[:, :used] @ torch.diag(values[:used]) @ kept
        assert apart(dense(merged.adapter, module), wanted) < 1e-5


@given(federation=federations(), scale=st.floats(0.1, 4.0), rank=st.integers(0, 8))
def test_linear_is_the_dense_sum_cut_to_its_rank(federation, scale, rank):
    """s B A + λ Σ p_i τ_i, cut as a dense truncated SVD would; every reported figure is dense."""
    sites, weights, previous = federation
    merged = linear(scale=scale, rank=rank)(sites, weights, previous)
    lost = square = error = target = 0.0
    for module in SHAPES:
        taus, shares = vectors(sites, weights, previous, module)
        wanted = dense(previous, module) + scale * sum(
            p * tau for p, tau in zip(shares, taus, strict=True)
        )
        size = rank or previous.a[module].shape[0]
        values = torch.linalg.svdvals(wanted)
        if size < len(values) and values[size] > 1e-9 * values[0]:
            assume(bool(values[size] < 0.99 * values[size - 1]))  # else the cut is not unique
        assert apart(dense(merged.adapter, module), best(wanted, size)) < 1e-5
        lost += float(values[size:].square().sum())
        square += float(values.square().sum())
        mean = goal(sites, weights, module)
        error += float((dense(merged.adapter, module) - mean).square().sum())
        target += float(mean.square().sum())
    assert merged.report["discarded_energy"] == pytest.approx(lost / square, abs=1e-9)
    assert merged.report["merged_norm"] == pytest.approx(square**0.5, rel=1e-9)
    assert merged.report["target_norm"] == pytest.approx(target**0.5, rel=1e-9)
    assert merged.report["relative_error"] == pytest.approx(
        (error / target) ** 0.5, rel=1e-4, abs=1e-6
    )


@settings(max_examples=20)
@given(federation=federations())
def test_linear_with_factor_one_is_core_svd(federation):
    """λ = 1: the weighted mean, whatever the sites started from."""
    sites, weights, previous = federation
    one, other = linear()(sites, weights, previous), core_svd()(sites, weights, previous)
    assert one.report["discarded_energy"] == pytest.approx(
        other.report["discarded_energy"], abs=1e-9
    )
    for module in SHAPES:
        size = previous.a[module].shape[0]
        values = torch.linalg.svdvals(goal(sites, weights, module))
        if size < len(values) and values[size] > 1e-9 * values[0]:
            assume(bool(values[size] < 0.99 * values[size - 1]))
        assert apart(dense(one.adapter, module), dense(other.adapter, module)) < 1e-5


@given(federation=federations(), zero=st.booleans())
def test_core_space_loses_nothing(federation, zero):
    """U M_i Vᵀ is the dense task vector, and the bases are orthonormal."""
    sites, _, previous = started(federation, zero)
    for module in SHAPES:
        updates = {s: delta(x, module) for s, x in sites.items()}
        space = to_core_space(updates, previous_product(previous, module))
        for basis in (space.left, space.right):
            eye = torch.eye(basis.shape[1], dtype=torch.float64)
            torch.testing.assert_close(basis.T @ basis, eye, rtol=0, atol=1e-12)
        for site in sites:
            tau = dense(sites[site], module) - dense(previous, module)
            assert apart(space.left @ space.cores[site] @ space.right.T, tau) < 1e-12


def test_core_space_has_no_direction_that_nobody_uses():
    """Four sites that share A span no more than its rank on that side."""
    previous = make(1, rank=2)
    sites = {str(i): replace(make(i + 2, rank=2), a=previous.a) for i in range(4)}
    module = "h.0.q_proj"
    space = to_core_space({s: delta(x, module) for s, x in sites.items()}, None)
    assert space.cores["0"].shape == (8, 2)


@pytest.mark.parametrize("rule", [ties(rank=FULL), knots(rank=FULL)])
def test_merging_by_election_ignores_weights_of_agreeing_equals(rule):
    """Equal sites agree in every entry: the merge is one site's, whatever the weights."""
    one = make(1)
    alone = rule({"a": one}, {"a": 1.0}, make(9, zero=True))
    several = rule({"a": one, "b": one}, {"a": 0.1, "b": 0.9}, make(9, zero=True))
    # Two equal sites stack to other bases than one, but to the same directions.
    for module in SHAPES:
        assert apart(dense(several.adapter, module), dense(alone.adapter, module)) < 1e-5


def test_ties_cancels_a_tie():
    """Two equal weights, opposite entries: no sign wins, and nothing is left."""
    one = make(1)
    other = replace(one, b={m: -x for m, x in one.b.items()})
    start_ = make(9, zero=True)
    merged = ties(density=1.0)({"a": one, "b": other}, {"a": 1.0, "b": 1.0}, start_)
    for module in SHAPES:
        assert float(dense(merged.adapter, module).norm()) < 1e-12
    assert "relative_error" not in merged.report or merged.report["target_norm"] < 1e-12


def test_dare_repeats_and_depends_on_seed_and_round():
    """The same call gives the same bits; another seed or another start gives other masks."""
    sites, weights = {"a": make(1), "b": make(2)}, {"a": 1.0, "b": 1.0}
    previous, later = make(9, zero=True), make(10, zero=True)
    one = dare()(sites, weights, previous).adapter
    assert adapter_hash(dare()(sites, weights, previous).adapter) == adapter_hash(one)
    for other in (dare(seed=1)(sites, weights, previous), dare()(sites, weights, later)):
        assert apart(dense(other.adapter, "h.0.q_proj"), dense(one, "h.0.q_proj")) > 1e-3


def test_dropped_is_unbiased_over_seeds():
    """The mean over many seeds nears the entries, as far as independent draws let it."""
    entries, draws, density = make(1).a["h.0.q_proj"].double(), 400, 0.4
    mean = torch.stack([drop_at_random(entries, density, seed) for seed in range(draws)]).mean(
        dim=0
    )
    # E‖mean − e‖² = ‖e‖² (1/d − 1) / draws
    expected = float(entries.norm()) * math.sqrt((1 / density - 1) / draws)
    assert 0.5 * expected < float((mean - entries).norm()) < 1.5 * expected


@given(seed=st.integers(0, 99), density=st.floats(0.01, 1.0), equal=st.booleans())
def test_trimmed_keeps_the_largest(seed, density, equal):
    """Kept entries are unchanged, at least as many as asked, and none is below a dropped one."""
    draw = torch.Generator().manual_seed(seed)
    entries = torch.randn(5, 7, generator=draw, dtype=torch.float64)
    entries = entries.sign() if equal else entries
    found = trim(entries, density)
    kept = found != 0
    assert torch.equal(found[kept], entries[kept])
    assert int(kept.sum()) == (35 if equal else math.ceil(density * 35))
    if bool((~kept).any()):
        assert float(entries[kept].abs().min()) > float(entries[~kept].abs().max())


def test_dropped_of_density_one_is_the_whole():
    """Nothing is dropped and nothing grows at density 1."""
    entries = make(1).a["h.0.q_proj"].double()
    assert torch.equal(drop_at_random(entries, 1.0, 0), entries)


def test_elected_of_one_site_is_its_own():
    """One site agrees with itself in every entry."""
    entries = make(1).a["h.0.q_proj"].double()
    torch.testing.assert_close(elect_sign(lambda site: entries, {"a": 0.3}), entries)


@pytest.mark.parametrize(
    ("rule", "setting", "words"),
    [
        (ties, {"density": 0.0}, r"density = 0\.0.*\(0, 1\]"),
        (knots, {"density": 1.5}, r"density = 1\.5.*\(0, 1\]"),
        (dare, {"density": -1.0}, r"density = -1\.0"),
        (dare_ties, {"scale": 0.0}, r"scale = 0\.0.*above 0"),
        (linear, {"scale": math.inf}, r"scale = inf"),
        (linear, {"rank": -1}, "at least 1"),
    ],
)
def test_merging_refuses_settings_out_of_range(rule, setting, words):
    """A setting out of its range is named with the range."""
    with pytest.raises(ValueError, match=words):
        rule(**setting)
