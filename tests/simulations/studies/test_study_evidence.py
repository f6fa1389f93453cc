"""Laws of a study's numbers: shares of a gap and differences between splits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_record import arm_tree, make_record

from fedwinnow.simulations.studies.evidence import (
    difference_of_splits,
    recovered_share,
    with_reference_arms,
)


def record(curated, keep_all, oracle):
    return record_of(curated=curated, keep_all=keep_all, oracle=oracle)


def record_of(**losses):
    """A record whose arms have these losses and no other arm."""
    return make_record({"arms": {arm: arm_tree(list(found)) for arm, found in losses.items()}})


@given(share=st.floats(-1, 2), gap=st.floats(0.01, 3), seed=st.integers(0, 99))
def test_recovered_is_the_share_that_was_put_in(share, gap, seed):
    """Curated at keep_all − share · gap on every item recovers the share, with no width."""
    oracle = np.random.default_rng(seed).uniform(1, 3, size=20)
    found = recovered_share([record(oracle + gap - share * gap, oracle + gap, oracle)])
    assert found.gap == pytest.approx(gap)
    assert [found.share, found.low, found.high] == pytest.approx([share] * 3, abs=1e-6)


def test_recovered_needs_a_gap_and_its_arms():
    """No share where the oracle is not better, or an arm did not run."""
    losses = [1.0, 2.0]
    assert recovered_share([record(losses, losses, losses)]) is None
    assert recovered_share([record_of(curated=losses)]) is None


def test_recovered_of_several_seeds_weighs_items_alike():
    """Two seeds: the share of the pooled means, not the mean of shares."""
    records = [record([2.0], [3.0], [1.0]), record([4.0, 4.0], [5.0, 5.0], [1.0, 1.0])]
    assert recovered_share(records).share == pytest.approx((1 + 1 + 1) / (2 + 4 + 4))


def test_between_compares_with_the_first_split():
    """The first split has no difference; another's is its curated loss minus the first's."""
    finished = {
        "base": [record([1.0, 2.0], [0, 0], [0, 0])],
        "better": [record([0.5, 1.5], [0, 0], [0, 0])],
    }
    found = difference_of_splits(finished)
    assert found["base"] is None
    assert found["better"].mean == pytest.approx(-0.5)
    assert found["better"].items == 2


def test_gauge_takes_only_the_ends_of_the_gap_that_are_missing():
    """A record's own arms stay; keep_all and oracle come from the yardstick, other arms never."""
    own = record_of(curated=[2.0], oracle=[1.5])
    other = record_of(curated=[9.0], keep_all=[3.0], oracle=[1.0], random=[4.0])
    found = with_reference_arms(own, other).arms
    assert {name: arm.losses for name, arm in found.items()} == {
        "curated": (2.0,),
        "keep_all": (3.0,),
        "oracle": (1.5,),
    }
    assert with_reference_arms(own, None) is own
