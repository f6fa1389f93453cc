"""Laws of the threshold ``budget``: the best buckets by the summed histogram, and its evidence."""

import numpy as np
import pytest

from fedwinnow.curation.datatypes import PublicScores
from fedwinnow.curation.errors import PluginError
from fedwinnow.curation.scores.histogram import merge_summaries, rank_error_bound, summarise
from fedwinnow.curation.scores.histogram_edges import edges_from_public
from fedwinnow.strategies.maths.data_scaling_law import Law, expected_losses, most_worth
from fedwinnow.strategies.registry import build

LAW = {
    "utilities": [-0.3, -0.28, -0.25, -0.05],
    "half_lives": [0.5, 0.5, 0.5, 0.5],
    "scale": 3.0,
    "floor": 1.0,
    "bucket": 250.0,
}


@pytest.fixture(scope="module")
def case():
    """Three sites of a thousand samples together: all scores, summaries, public scores."""
    random = np.random.default_rng(0)
    known = PublicScores(
        scores=np.concatenate([random.normal(1, 1, 60), random.normal(-1, 1, 60)]),
        kinds=("clean",) * 60 + ("swap",) * 60,
        domains=("",) * 120,
    )
    scores = random.normal(0, 1.4, size=1000)
    edges = edges_from_public(known.scores, bins=64, probability=False)
    parts = np.split(scores, [200, 700])
    summaries = {
        site: summarise(part, edges, smallest_cell=1)
        for site, part in zip("abc", parts, strict=True)
    }
    return scores, summaries, known


def decide(case, samples, **changes):
    """The decision for a budget."""
    return build("threshold", "budget", LAW | {"samples": float(samples)} | changes)(
        case[1], case[2]
    )


@pytest.mark.parametrize("samples", [100, 1000, 3000, 6000, 50_000])
def test_budget_keeps_the_chosen_share_up_to_the_rank_error(case, samples):
    """As many of the pooled scores pass as p of P buckets hold, but for the histogram's error."""
    scores, summaries, _ = case
    found = decide(case, samples)
    kept, best = float((scores >= found.value).sum()), found.evidence["buckets_kept"]
    bound = rank_error_bound(merge_summaries(summaries.values())) * len(scores)
    assert abs(kept - best / 4 * len(scores)) <= bound + 1
    assert found.evidence["kept_share"] == pytest.approx(best / 4, abs=bound / len(scores))


def test_budget_decides_by_the_law(case):
    """The evidence holds the loss for every p, the smallest is chosen; more steps keep more."""
    law = Law(
        utilities=tuple(LAW["utilities"]),
        half_lives=(0.5,) * 4,
        scale=3.0,
        floor=1.0,
        pool=250.0,
    )
    chosen = []
    for samples in (100, 1000, 3000, 50_000):
        found = decide(case, samples).evidence
        losses = expected_losses(law, float(samples), 250.0)
        assert [found[f"expected_loss_{p}"] for p in (1, 2, 3, 4)] == pytest.approx(losses)
        assert found["buckets_kept"] == most_worth(losses)
        assert found["expected_loss"] == pytest.approx(min(losses))
        chosen.append(found["buckets_kept"])
    assert chosen == sorted(chosen)
    assert chosen[0] < chosen[-1]


def test_budget_says_that_it_is_an_experiment(case):
    """The law's origin and its error stand in the evidence."""
    found = decide(case, 1000, error=0.02).evidence
    assert (found["experimental"], found["law_error"]) == (1.0, 0.02)


def test_budget_of_all_buckets_drops_nothing(case):
    """p = P is −∞, not the lowest edge."""
    useful = {"utilities": [-0.3, -0.29, -0.28, -0.27], "half_lives": [0.5] * 4}
    assert decide(case, 10**6, **useful).value == float("-inf")


def test_budget_refuses_numbers_that_are_no_law(case):
    """Each wrong setting is named."""
    for changes, word in (
        ({"utilities": [0.1] * 4}, "utilities"),
        ({"half_lives": [1.0]}, "half_lives"),
        ({"scale": -1.0}, "scale"),
        ({"bucket": 0.0}, "bucket"),
    ):
        with pytest.raises(PluginError, match=word):
            decide(case, 100, **changes)
    with pytest.raises(PluginError, match="samples"):
        decide(case, 0)
