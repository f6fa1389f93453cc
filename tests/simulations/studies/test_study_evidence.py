"""Laws of a study's numbers: shares of a gap and differences between splits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.simulations.studies.evidence import between, gauge, recovered


def record(curated, keep_all, oracle):
    arms = {"curated": curated, "keep_all": keep_all, "oracle": oracle}
    return {"arms": {name: {"losses": list(losses)} for name, losses in arms.items()}}


@given(share=st.floats(-1, 2), gap=st.floats(0.01, 3), seed=st.integers(0, 99))
def test_recovered_is_the_share_that_was_put_in(share, gap, seed):
    """Curated at keep_all − share · gap on every item recovers the share, with no width."""
    oracle = np.random.default_rng(seed).uniform(1, 3, size=20)
    found = recovered([record(oracle + gap - share * gap, oracle + gap, oracle)])
    assert found["gap"] == pytest.approx(gap)
    assert [found[key] for key in ("share", "low", "high")] == pytest.approx([share] * 3, abs=1e-6)


def test_recovered_needs_a_gap_and_its_arms():
    """No share where the oracle is not better, or an arm did not run."""
    losses = [1.0, 2.0]
    assert recovered([record(losses, losses, losses)]) is None
    assert recovered([{"arms": {"curated": {"losses": losses}}}]) is None


def test_recovered_of_several_seeds_weighs_items_alike():
    """Two seeds: the share of the pooled means, not the mean of shares."""
    records = [record([2.0], [3.0], [1.0]), record([4.0, 4.0], [5.0, 5.0], [1.0, 1.0])]
    assert recovered(records)["share"] == pytest.approx((1 + 1 + 1) / (2 + 4 + 4))


def test_between_compares_with_the_first_split():
    """The first split has no difference; another's is its curated loss minus the first's."""
    finished = {
        "base": [record([1.0, 2.0], [0, 0], [0, 0])],
        "better": [record([0.5, 1.5], [0, 0], [0, 0])],
    }
    found = between(finished)
    assert found["base"] is None
    assert found["better"]["mean"] == pytest.approx(-0.5)
    assert found["better"]["items"] == 2


def test_gauge_takes_only_the_ends_of_the_gap_that_are_missing():
    """A record's own arms stay; keep_all and oracle come from the yardstick, other arms never."""
    own = {"arms": {"curated": {"losses": [2.0]}, "oracle": {"losses": [1.5]}}}
    other = record([9.0], [3.0], [1.0])
    other["arms"]["random"] = {"losses": [4.0]}
    found = gauge(own, other)["arms"]
    assert {name: arm["losses"] for name, arm in found.items()} == {
        "curated": [2.0],
        "keep_all": [3.0],
        "oracle": [1.5],
    }
    assert gauge(own, None) is own
