"""Laws of the threshold rules."""

import math

import numpy as np
import pytest

from fedwinnow.curation.datatypes import PublicScores
from fedwinnow.curation.errors import EmptySummaryError, NonFiniteError, PluginError
from fedwinnow.curation.scores.histogram import empty_summary, merge_summaries, summarise
from fedwinnow.curation.scores.histogram_edges import edges_from_public, is_on_grid
from fedwinnow.strategies.registry import BUILT_IN, build
from fedwinnow.strategies.thresholds.target_recall import fit_mixture

SETTINGS = {
    "fixed": {"value": 0.25},
    "budget": {
        "samples": 500.0,
        "utilities": [-0.3, -0.1],
        "half_lives": [1.0, 1.0],
        "scale": 3.0,
        "floor": 1.0,
        "bucket": 100.0,
    },
}
RULES = tuple(BUILT_IN["threshold"])
CUTTING = tuple(name for name in RULES if name != "keep_all")


def public_of(clean, corrupted):
    """Public scores with their truth."""
    return PublicScores(
        scores=np.concatenate([clean, corrupted]).astype(np.float64),
        kinds=("clean",) * len(clean) + ("swap",) * len(corrupted),
        domains=("",) * (len(clean) + len(corrupted)),
    )


class Case:
    """Sites with normal scores: clean ones ``gap`` above corrupted ones."""

    def __init__(self, seed=0, *, gap=3.0, share=0.6, samples=900, anchors=64, bins=256) -> None:
        """Draw public rows and three uneven sites."""
        random = np.random.default_rng(seed)
        self.public = public_of(
            random.normal(gap, 1, size=anchors), random.normal(0, 1, size=4 * anchors)
        )
        self.clean = random.random(samples) < share
        self.scores = np.where(
            self.clean, random.normal(gap, 1, samples), random.normal(0, 1, samples)
        )
        self.edges = edges_from_public(self.public.scores, bins=bins, probability=False)
        places = np.split(np.arange(samples), [samples // 2, samples - samples // 6])
        self.sites = dict(zip("abc", (self.scores[one] for one in places), strict=True))
        self.summaries = {
            site: summarise(scores, self.edges, smallest_cell=1)
            for site, scores in self.sites.items()
        }

    def decide(self, name, **settings):
        """The rule's decision."""
        return build("threshold", name, SETTINGS.get(name, {}) | settings)(
            self.summaries, self.public
        )


@pytest.fixture(scope="module")
def case():
    """One federation for all rules."""
    return Case()


@pytest.mark.parametrize("name", RULES)
def test_threshold_lies_on_the_grid_that_sites_accept(case, name):
    """Every value, per site too, passes the sites' own check."""
    found = case.decide(name)
    assert all(is_on_grid(value, case.edges) for value in (found.value, *found.per_site.values()))
    assert all(math.isfinite(value) for value in found.evidence.values())


@pytest.mark.parametrize("name", RULES)
def test_threshold_ignores_the_order_of_sites(case, name):
    """Arrival changes nothing."""
    rule = build("threshold", name, SETTINGS.get(name, {}))
    turned = dict(reversed(case.summaries.items()))
    assert rule(turned, case.public) == rule(case.summaries, case.public)


@pytest.mark.parametrize("name", [name for name in RULES if name != "site_fraction"])
def test_threshold_needs_sums_only(case, name):
    """One summed histogram under the name "" gives the same decision as the sites' own."""
    rule = build("threshold", name, SETTINGS.get(name, {}))
    summed = rule({"": merge_summaries(case.summaries.values())}, case.public)
    whole = rule(case.summaries, case.public)
    assert summed.value == whole.value
    assert summed.evidence == pytest.approx(whole.evidence)


@pytest.mark.parametrize("name", RULES)
def test_threshold_of_empty_summaries_is_refused(case, name):
    """No site, or sites without a scored sample: a named error."""
    rule = build("threshold", name, SETTINGS.get(name, {}))
    with pytest.raises(EmptySummaryError):
        rule({}, case.public)
    with pytest.raises(EmptySummaryError, match="a, b"):
        rule({"a": empty_summary(case.edges), "b": empty_summary(case.edges)}, case.public)


@pytest.mark.parametrize("name", RULES)
def test_threshold_ignores_public_rows_without_a_score(case, name):
    """A NaN row is as if it were not there."""
    rule = build("threshold", name, SETTINGS.get(name, {}))
    more = PublicScores(
        scores=np.concatenate([case.public.scores, [np.nan, np.nan]]),
        kinds=(*case.public.kinds, "clean", "swap"),
        domains=(*case.public.domains, "", ""),
    )
    assert rule(case.summaries, more) == rule(case.summaries, case.public)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("value", [0.5, 0.1])
def test_constant_scores_keep_everything(name, value):
    """Where every public score is one number, no rule drops by it."""
    public = public_of(np.full(10, value), np.full(30, value))
    edges = edges_from_public(public.scores, bins=64, probability=True)
    summaries = {s: summarise(np.full(40, value), edges, smallest_cell=5) for s in "ab"}
    found = build("threshold", name, SETTINGS.get(name, {}))(summaries, public)
    assert found.value == float("-inf")
    assert not found.per_site
    assert found.evidence["inseparable"] == 1.0


@pytest.mark.parametrize(
    ("name", "settings", "oracle"),
    [
        ("anchor_mean", {}, lambda clean: clean.mean()),
        ("anchor_mean_minus_sd", {}, lambda clean: clean.mean() - clean.std(ddof=1)),
        ("anchor_mean_minus_sd", {"factor": 2.0}, lambda c: c.mean() - 2 * c.std(ddof=1)),
        ("anchor_quantile", {"share": 0.2}, lambda clean: np.quantile(clean, 0.2)),
        ("fixed", {"value": 1.7}, lambda _: 1.7),
    ],
)
def test_anchor_rule_equals_its_formula_up_to_a_grid_step(case, name, settings, oracle):
    """Never above the formula, and at most one step of the grid below."""
    found = case.decide(name, **settings).value
    wanted = oracle(case.public.clean)
    cell = int(np.searchsorted(case.edges, wanted, side="right"))
    step = (case.edges[cell] - case.edges[cell - 1]) / 16
    assert wanted - step - 1e-12 <= found <= wanted


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.8, 0.95, 1.0])
def test_keep_fraction_keeps_its_share_of_all_and_site_fraction_of_each(case, share):
    """Within the bound of the histogram, and never fewer by the snap."""
    found = case.decide("keep_fraction", share=share)
    assert abs((case.scores >= found.value).mean() - share) <= found.evidence["rank_error"]
    own = case.decide("site_fraction", share=share)
    assert set(own.per_site) == set(case.sites)
    assert own.value == found.value
    for site, scores in case.sites.items():
        assert abs((scores >= own.per_site[site]).mean() - share) <= 0.03


def test_site_fraction_refuses_sums(case):
    """Only a sum is seen: refused by name, with what to choose instead."""
    rule = build("threshold", "site_fraction", {})
    with pytest.raises(PluginError, match=r"site_fraction.*keep_fraction"):
        rule({"": merge_summaries(case.summaries.values())}, case.public)


def test_keep_all_keeps_all(case):
    """−∞, with no rank error."""
    found = case.decide("keep_all")
    assert found.value == float("-inf")
    assert (found.evidence["kept_share"], found.evidence["rank_error"]) == (1.0, 0.0)


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_fixed_takes_infinities(case, value):
    """Drop all and keep all can be asked for; NaN cannot."""
    assert case.decide("fixed", value=value).value == value
    with pytest.raises(PluginError, match="nan"):
        case.decide("fixed", value=float("nan"))


@pytest.mark.parametrize("name", ["anchor_quantile", "keep_fraction", "site_fraction"])
@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_share_out_of_range_is_refused(case, name, share):
    """In (0, 1], by name."""
    with pytest.raises(PluginError, match="share"):
        case.decide(name, share=share)


def test_rule_without_clean_rows_names_the_cure(case):
    """Rules of the anchors need anchors; two of them for a spread."""
    nobody = public_of(np.zeros(0), np.array([0.0, 1.0]))
    one = public_of(np.array([2.0]), np.array([0.0, 1.0]))
    for name in ("anchor_mean", "anchor_quantile", "target_recall"):
        with pytest.raises(EmptySummaryError, match=name):
            build("threshold", name, {})(case.summaries, nobody)
    with pytest.raises(EmptySummaryError, match="at least 2"):
        build("threshold", "anchor_mean_minus_sd", {})(case.summaries, one)


def test_infinite_public_score_is_no_threshold(case):
    """A NaN that comes of an infinity is caught before it travels."""
    public = public_of(np.array([np.inf, -np.inf]), np.array([0.0]))
    with np.errstate(invalid="ignore"), pytest.raises(NonFiniteError, match="NaN"):
        build("threshold", "anchor_mean", {})(case.summaries, public)


@pytest.mark.parametrize("recall", [0.8, 0.9, 0.95])
def test_target_recall_keeps_its_promise_on_average(recall):
    """Mean recall of 60 draws of 64 anchors is at least the target, and not far above."""
    reached = []
    for seed in range(60):
        one = Case(seed, samples=600)
        kept = one.scores >= one.decide("target_recall", recall=recall).value
        reached.append(kept[one.clean].mean())
    error = np.std(reached) / np.sqrt(len(reached))
    assert recall - 3 * error <= np.mean(reached) <= recall + 1 / 65 + 3 * error + 0.005


def test_target_recall_interval_covers_the_recall():
    """At least 90 % of the 95 % intervals hold the recall of fresh clean samples."""
    covered = 0
    fresh = np.random.default_rng(99).normal(3.0, 1, size=20_000)
    for seed in range(60):
        found = Case(seed, samples=300).decide("target_recall")
        recall = (fresh >= found.value).mean()
        covered += found.evidence["recall_low"] <= recall <= found.evidence["recall_high"]
    assert covered >= 54


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_target_recall_estimates_clean_share_and_precision(share):
    """From sums of coarse private histograms alone, within a few standard errors."""
    shares, precisions = [], []
    for seed in range(8):
        one = Case(seed, share=share, samples=1500)
        found = one.decide("target_recall")
        kept = one.scores >= found.value
        shares.append(found.evidence["clean_share"] - one.clean.mean())
        precisions.append(found.evidence["expected_precision"] - one.clean[kept].mean())
        assert abs(found.evidence["kept_share"] - kept.mean()) <= found.evidence["rank_error"]
        assert found.evidence["expected_kept"] == pytest.approx(kept.mean(), abs=0.06)
    assert abs(np.mean(shares)) < 0.02
    assert abs(np.mean(precisions)) < 0.02


def test_target_recall_says_the_posterior_at_its_cut():
    """More clean samples, higher posterior at the same cut."""
    found = [Case(1, share=share).decide("target_recall") for share in (0.1, 0.5, 0.9)]
    assert len({one.value for one in found}) == 1
    posteriors = [one.evidence["posterior_at_threshold"] for one in found]
    assert 0 < posteriors[0] < posteriors[1] < posteriors[2] < 1


@pytest.mark.parametrize("gap", [0.0, -2.0, 0.15])
def test_target_recall_keeps_everything_where_nothing_is_told_apart(gap):
    """AUROC near one half, or inverted: no cut, and the evidence says so."""
    found = Case(2, gap=gap).decide("target_recall")
    assert found.value == float("-inf")
    assert found.evidence["inseparable"] == 1.0
    assert found.evidence["expected_recall"] == 1.0
    assert "expected_precision" not in found.evidence


def test_target_recall_without_corrupted_rows_keeps_everything():
    """Nothing shows that the scorer works, so nothing is dropped by it."""
    one = Case(3)
    public = public_of(one.public.clean, np.zeros(0))
    found = build("threshold", "target_recall", {})(one.summaries, public)
    assert (found.value, found.evidence["inseparable"]) == (float("-inf"), 1.0)


def test_target_recall_with_too_few_anchors_keeps_everything():
    """8 anchors cannot promise 90 %; 9 can, with the lowest as the cut."""
    few, enough = Case(4, gap=6.0, anchors=8), Case(4, gap=6.0, anchors=9)
    found = few.decide("target_recall")
    assert found.value == float("-inf")
    assert found.evidence["inseparable"] == 0.0
    assert found.evidence["expected_precision"] == pytest.approx(found.evidence["clean_share"])
    cut = enough.decide("target_recall")
    assert cut.value <= enough.public.clean.min()
    assert cut.evidence["expected_recall"] == pytest.approx(0.9)


def test_mixture_of_the_public_rows_themselves_finds_their_share():
    """Private scores equal to the public ones: π is their clean share."""
    one = Case(5, gap=2.0, anchors=400)
    clean, corrupted = one.public.clean, one.public.scores[400:]
    private = np.concatenate([clean, corrupted])
    found = fit_mixture(summarise(private, one.edges, smallest_cell=1), clean, corrupted)
    assert found.share == pytest.approx(0.2, abs=0.005)
    assert 0 < found.error < 0.05
