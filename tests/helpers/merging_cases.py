"""Adapters, federations and slow dense float64 computations for the laws of merging."""

import math
from dataclasses import replace

import torch
from hypothesis import strategies as st

from fedwinnow.curation.datatypes import Adapter
from fedwinnow.strategies.interfaces.merging import Merged

SHAPES = {"h.0.q_proj": (11, 9), "h.0.v_proj": (5, 12)}


def make(seed: int, *, rank=3, scale: float = 2.0, zero: bool = False) -> Adapter:
    """A seeded adapter; ``rank`` may be a number for each module; ``zero`` gives B = 0."""
    generator = torch.Generator().manual_seed(seed)
    ranks = rank if isinstance(rank, dict) else dict.fromkeys(SHAPES, rank)
    return Adapter(
        base="base",
        a={m: torch.randn(ranks[m], i, generator=generator) for m, (_, i) in SHAPES.items()},
        b={
            m: torch.zeros(o, ranks[m])
            if zero
            else 0.1 * torch.randn(o, ranks[m], generator=generator)
            for m, (o, _) in SHAPES.items()
        },
        scales=dict.fromkeys(SHAPES, scale),
    )


def dense(adapter: Adapter, module: str) -> torch.Tensor:
    """ΔW in float64."""
    product = adapter.b[module].double() @ adapter.a[module].double()
    return adapter.scales[module] * product


def whole(merged: Merged, module: str) -> torch.Tensor:
    """ΔW of the merged adapter and of the change of the base together, in float64."""
    found = dense(merged.adapter, module)
    if merged.change is not None and module in merged.change.a:
        found = found + dense(merged.change, module)
    return found


def goal(sites: dict[str, Adapter], weights: dict[str, float], module: str) -> torch.Tensor:
    """ΔW* in float64, weights normalised."""
    total = sum(weights[s] for s in sites)
    return sum((weights[s] / total) * dense(x, module) for s, x in sites.items())


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative Frobenius distance to ``other``."""
    return float((one - other).norm() / other.norm())


def best(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """Dense truncated SVD."""
    u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ torch.diag(values[:rank]) @ vt[:rank]


def ranks(draw, rank):
    """One rank for all modules, or one for each (a rank pattern)."""
    if draw(st.booleans()):
        return draw(rank)
    return {module: draw(rank) for module in SHAPES}


@st.composite
def federations(draw):
    """One to four sites of mixed ranks and rank patterns, scales α / r or (rsLoRA) α / √r."""
    count = draw(st.integers(1, 4))
    alpha = draw(st.sampled_from([1.0, 16.0, 64.0]))
    rslora = draw(st.booleans())
    seed = draw(st.integers(0, 1_000))
    sites, weights = {}, {}
    for i in range(count):
        rank = ranks(draw, st.integers(1, 6))
        site = make(seed + i, rank=rank)
        scales = {}
        for module in SHAPES:
            r = site.a[module].shape[0]
            scales[module] = alpha / math.sqrt(r) if rslora else alpha / r
        sites[f"site-{i}"] = replace(site, scales=scales)
        weights[f"site-{i}"] = draw(st.floats(0.05, 1.0))
    previous = make(seed + 99, rank=ranks(draw, st.integers(1, 6)), scale=alpha / 4)
    return sites, weights, previous


@st.composite
def sharing(draw, part: str):
    """A federation whose sites hold factor ``part`` as in the previous adapter, scales apart."""
    sites, weights, previous = draw(federations())
    other = "b" if part == "a" else "a"
    shared = {}
    for i, (name, site) in enumerate(sites.items()):
        like = {m: getattr(previous, other)[m] for m in SHAPES}
        generator = torch.Generator().manual_seed(draw(st.integers(0, 1_000)) + i)
        drawn = {m: torch.randn(x.shape, generator=generator) for m, x in like.items()}
        kept = {m: x.clone() for m, x in getattr(previous, part).items()}
        shared[name] = replace(site, **{part: kept, other: drawn})
    return shared, weights, previous
