"""Attacks on the histogram of scores: single samples from its cells, and a silo that lies in it."""

from dataclasses import replace

import numpy as np
import pytest

from fedwinnow.curation.config.site import SiteConfig, SiteSection
from fedwinnow.curation.datatypes import ScoreSummary
from fedwinnow.curation.scores.cell_groups import (
    cell_shares,
    group_cells,
    number_of_groups,
    public_mass,
)
from fedwinnow.curation.scores.histogram import merge_summaries, quantile, summarise
from fedwinnow.curation.scores.histogram_edges import edges_from_public, snap_to_grid
from fedwinnow.server.aggregation.count_guards import guard_summaries
from fedwinnow.server.phases.limits import hold_to_count, why_too_full

pytestmark = pytest.mark.attacks

DIRTY = (0.1, 0.3, 0.5, 0.2, 0.4)
"""Share of dirty samples at each of five honest sites."""


def scores_of(random, number, dirty):
    """Scores of one site: clean ones high, dirty ones low."""
    low = random.random(number) < dirty
    return np.where(low, random.normal(-1.5, 0.8, number), random.normal(1.0, 0.8, number))


def visible_ends(summary, shares):
    """Last cells of groups, as a coordinator sees them: where its count by public share changes."""
    density = summary.counts / shares
    return set(np.flatnonzero(np.abs(np.diff(density)) > 1e-6 * (1 + density[:-1])).tolist())


@pytest.mark.parametrize("bins", [256, 1024, 4096])
def test_ends_of_groups_tell_no_sample(bins):
    """Law: ends of groups follow from public numbers alone, however many cells a run asks for.

    A quite different silo of the same size has its ends among the same cells. Members' scores lie
    there about as often as strangers', where runs by private counts gave twelve times as often.
    """
    random = np.random.default_rng(0)
    public, private = random.normal(size=600), random.normal(0.2, 1.1, 400)
    edges = edges_from_public(public, bins=bins, probability=False)
    told = {"smallest_cell": 8, "step": 10, "public_scores": public}
    mass = public_mass(edges, public)
    number = number_of_groups(len(edges) - 1, samples=400, smallest_cell=8, step=10, most=256)
    groups = group_cells(mass, number)
    shares = cell_shares(mass, groups)
    allowed = set(np.flatnonzero(np.diff(groups)).tolist())
    for scores in (private, random.normal(-0.5, 0.7, 400), np.full(400, 0.123)):
        found = summarise(scores, edges, **told)
        ends = visible_ends(found, shares)
        assert ends
        assert ends <= allowed
        assert found.total / 10 == pytest.approx(round(found.total / 10))
    last = sorted(allowed)
    members = np.isin(np.searchsorted(edges, private, side="right"), last).mean()
    strangers = random.normal(0.2, 1.1, 20_000)
    others = np.isin(np.searchsorted(edges, strangers, side="right"), last).mean()
    assert members <= others + 3 * np.sqrt(others / len(private)) + 1 / len(private)


def test_deployment_takes_careful_numbers_where_none_are_set():
    """Edge: 10 and 8 in a deployment, exact numbers in a simulation, the owner's own in both."""
    site = SiteSection(name="a", data="d")
    careful = SiteConfig(site=site).site
    assert (careful.round_counts_to, careful.smallest_cell) == (10, 8)
    exact = SiteConfig(site=site, simulation=True).site
    assert (exact.round_counts_to, exact.smallest_cell) == (1, 1)
    own = replace(site, round_counts_to=3, smallest_cell=4)
    assert SiteConfig(site=own).site == SiteConfig(site=own, simulation=True).site == own


def lie_of(random, honest, joined):
    """A hostile histogram that the server takes: a spike or noise, of any size that is allowed."""
    cells = len(honest.counts)
    kind = random.integers(3)
    counts = np.zeros(cells)
    if kind == 0:
        counts[random.choice([0, cells - 1, random.integers(cells)])] = 1.0
    else:
        counts = random.dirichlet(np.full(cells, 10.0 ** random.uniform(-3, 0)))
    counts *= joined * random.uniform(0.1, 3.0)
    lie = replace(honest, counts=counts, largest_merged=0.0)
    return lie if why_too_full(lie, 0, joined) == "" else replace(lie, counts=counts / 3)


def shift(edges, pooled, honest, lied, share):
    """How far the threshold moves, as a share of the honest samples' ranks."""
    cuts = [
        snap_to_grid(quantile(merge_summaries(guard_summaries(one, "auto").values()), share), edges)
        for one in (honest, lied)
    ]
    return abs(float((pooled >= cuts[0]).mean() - (pooled >= cuts[1]).mean()))


@pytest.mark.parametrize("sizes", [(400,) * 5, (100, 200, 400, 700, 1000)])
def test_hostile_silo_of_five_shifts_no_threshold_by_a_fifth(sizes):
    """Law: a threshold moves by at most a fifth of the honest samples' ranks, and no run ends.

    Over 1,000 random hostile replies, joined counts of up to 10**9 among them.
    """
    random = np.random.default_rng(sum(sizes))
    public = scores_of(random, 300, 0.3)
    edges = edges_from_public(public, bins=64, probability=False)
    worst = 0.0
    for round_ in range(500):
        if round_ % 50 == 0:
            parts = [
                scores_of(random, number, dirty)
                for number, dirty in zip(random.permutation(sizes), DIRTY, strict=True)
            ]
            pooled = np.concatenate(parts)
            told = {"smallest_cell": 8, "step": 10, "public_scores": public}
            honest = {f"s{i}": summarise(p, edges, **told) for i, p in enumerate(parts)}
        liar = f"s{random.integers(5)}"
        joined = int(random.choice([10, 500, 10**5, 10**9]))
        lied = honest | {liar: hold_to_count(lie_of(random, honest[liar], joined), joined)}
        worst = max(worst, shift(edges, pooled, honest, lied, random.uniform(0.2, 0.9)))
    assert 0.0 < worst <= 0.2


def test_clipped_histograms_stay_near_the_sum_where_honest_sites_differ():
    """Oracle: sizes 1 to 10, 10 to 50 % dirty: a mean rank error of at most 0.02.

    That is well below the median's; of fewer than three sites the sum is heard.
    """
    random = np.random.default_rng(5)
    errors = {"sum": [], "clipped": [], "median": []}
    for _ in range(40):
        sizes = random.permutation((200, 400, 800, 1400, 2000))
        parts = [scores_of(random, n, d) for n, d in zip(sizes, DIRTY, strict=True)]
        pooled, edges = np.concatenate(parts), np.linspace(-4, 4, 129)
        sites = {f"s{i}": summarise(one, edges, smallest_cell=1) for i, one in enumerate(parts)}
        for rule, found in errors.items():
            whole = merge_summaries(guard_summaries(sites, rule).values())
            for share in (0.3, 0.5, 0.7):
                found.append(abs((pooled >= quantile(whole, share)).mean() - share))
    means = {rule: float(np.mean(found)) for rule, found in errors.items()}
    assert means["sum"] < means["clipped"] < 0.02
    assert means["clipped"] < 0.7 * means["median"]
    two = dict(list(sites.items())[:2])
    assert guard_summaries(two, "auto") is two


def test_false_totals_are_refused_or_held():
    """Edge: 10**12 samples or cells of 1e308 from a silo of 12 are refused.

    Three times as many as joined, which rounding can make, count as those that joined.
    """
    edges = np.array([0.0, 1.0])
    for false in (1e12, 1e308):
        assert why_too_full(ScoreSummary(edges=edges, counts=np.full(3, false)), 0, 12)
    most = ScoreSummary(edges=edges, counts=np.full(3, 12.0))
    assert why_too_full(most, 0, 12) == ""
    assert hold_to_count(most, 12).total == pytest.approx(12)
