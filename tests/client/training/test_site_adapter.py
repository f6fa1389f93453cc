"""Laws of silos of smaller rank or fewer layers: the best slice out, nothing voted away back."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.client.training.site_adapter import (
    check_shared_factor,
    check_site_part,
    check_site_targets,
    cut_to_site,
    untrained_modules,
)
from fedwinnow.curation.config.scoring import AdapterSection
from fedwinnow.curation.config.site import SiteSection
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import ConfigError
from fedwinnow.server.aggregation.round_merge import complete_rank

SHAPES = {"h.0.q_proj": (9, 8), "h.0.v_proj": (7, 10)}


def make(seed: int, rank: int = 4, *, zero: bool = False) -> Adapter:
    """A seeded adapter; ``zero`` gives B = 0, as before any training."""
    draw = torch.Generator().manual_seed(seed)
    return Adapter(
        base="base",
        a={m: torch.randn(rank, i, generator=draw) for m, (_, i) in SHAPES.items()},
        b={
            m: (0.0 if zero else 1.0) * torch.randn(o, rank, generator=draw)
            for m, (o, _) in SHAPES.items()
        },
        scales=dict.fromkeys(SHAPES, 0.5),
    )


def dense(adapter: Adapter, module: str) -> torch.Tensor:
    return adapter.scales[module] * adapter.b[module].double() @ adapter.a[module].double()


def site(**changes) -> SiteSection:
    return SiteSection(name="small", data="x.jsonl", **changes)


@given(seed=st.integers(0, 1000), rank=st.integers(1, 4))
def test_own_part_is_the_best_approximation_of_its_rank(seed, rank):
    """ΔW of the slice is the truncated SVD of ΔW; with the run's rank it is ΔW itself."""
    whole = make(seed)
    part = cut_to_site(whole, site(rank=rank))
    for module in SHAPES:
        u, values, vt = torch.linalg.svd(dense(whole, module), full_matrices=False)
        best = u[:, :rank] @ torch.diag(values[:rank]) @ vt[:rank]
        assert part.a[module].shape[0] == rank
        assert float((dense(part, module) - best).norm() / best.norm()) < 1e-5


@given(seed=st.integers(0, 1000), rank=st.integers(1, 3))
def test_completed_adds_back_what_the_site_was_not_shown(seed, rank):
    """slice + update of the site + rest = ΔW + update; a site that learned nothing votes for ΔW."""
    whole = make(seed)
    part = cut_to_site(whole, site(rank=rank))
    learned = replace(part, b={m: b + 0.1 * torch.ones_like(b) for m, b in part.b.items()})
    for module in SHAPES:
        goal = dense(whole, module) + dense(learned, module) - dense(part, module)
        assert (
            float((dense(complete_rank(learned, whole), module) - goal).norm() / goal.norm()) < 1e-5
        )
        same = dense(complete_rank(part, whole), module)
        assert float((same - dense(whole, module)).norm() / same.norm()) < 1e-5


def test_completed_of_a_full_rank_is_itself():
    """Nothing is added where nothing was withheld, bit for bit."""
    whole = make(3)
    found = complete_rank(make(4), whole)
    assert all(torch.equal(found.a[m], make(4).a[m]) for m in SHAPES)
    assert all(torch.equal(found.b[m], make(4).b[m]) for m in SHAPES)


def test_own_part_of_an_untrained_adapter_can_be_trained():
    """B = 0 stays 0, and the rows of A are rows of the federation's."""
    whole = make(5, zero=True)
    part = cut_to_site(whole, site(rank=2))
    for module in SHAPES:
        assert float(part.b[module].abs().max()) == 0.0
        rows = [
            any(torch.allclose(row, other) for other in whole.a[module]) for row in part.a[module]
        ]
        assert all(rows)


def test_own_part_leaves_layers_that_are_not_the_sites():
    """Layers outside ``targets`` keep their rank and numbers, and learn nothing."""
    whole, own = make(6), site(rank=1, targets=("v_proj",))
    part = cut_to_site(whole, own)
    assert untrained_modules(whole, own) == {"h.0.q_proj"}
    assert torch.equal(part.a["h.0.q_proj"], whole.a["h.0.q_proj"])
    assert part.a["h.0.v_proj"].shape[0] == 1
    assert untrained_modules(whole, site()) == frozenset()
    assert cut_to_site(whole, site()) is whole


@pytest.mark.parametrize(
    ("own", "key"),
    [(site(rank=9), r"sites\.rank"), (site(targets=("lm_head",)), r"sites\.targets")],
)
def test_own_part_beyond_the_runs_is_a_named_error(own, key):
    """A rank above the run's, or a layer that it has not, names the key and the site."""
    with pytest.raises(ConfigError, match=key):
        check_site_part(own, AdapterSection(rank=8, targets=("q_proj", "v_proj")))


@pytest.mark.parametrize(
    "agreed", [AdapterSection(targets=("all-linear",)), AdapterSection(target_regex=r".*q_proj")]
)
def test_own_layers_are_held_to_the_adapter_where_names_do_not_choose(agreed):
    """Law: under all-linear or an expression the modules of the adapter itself decide."""
    own = site(targets=("v_proj", "lm_head"))
    check_site_part(own, agreed)
    with pytest.raises(
        ConfigError, match=r"sites\.targets .*no lm_head; choose from q_proj, v_proj"
    ):
        check_site_targets(own, make(1))
    check_site_targets(site(targets=("v_proj",)), make(1))


@pytest.mark.parametrize("frozen", ["a", "b"])
def test_own_rank_is_refused_where_all_share_a_factor(frozen):
    """Before anything is trained; without a shared factor, or with a rank that is no less, not."""
    with pytest.raises(ConfigError, match=rf"sites\.rank = 2 .* factor {frozen.upper()}"):
        check_shared_factor(make(1), site(rank=2), frozen)
    for own, kept in ((site(rank=2), ""), (site(rank=4), frozen), (site(), frozen)):
        check_shared_factor(make(1), own, kept)
