"""The six plug-ins keep the laws of their kinds, and do what their first lines say."""

import numpy as np
import pytest
import torch
from fedwinnow_example.interleaved import interleaved
from fedwinnow_example.medoid import medoid
from fedwinnow_example.otsu import otsu
from fedwinnow_example.tempered import tempered
from fedwinnow_example.trimmed import trimmed
from fedwinnow_example.typical_loss import typical_loss

from fedwinnow.curation.datatypes import PublicScores, Sample, ScoreSummary
from fedwinnow.strategies.conformance.check import assert_lawful
from fedwinnow.strategies.conformance.merging_laws import adapter, before


def test_scorer():
    """Lawful, with any setting."""
    assert_lawful("scorer", typical_loss, strict=True)
    assert_lawful("scorer", typical_loss, narrowest=5.0)


def test_threshold_parts_two_heaps():
    """Lawful; of two heaps with a gap it takes an edge in the gap."""
    assert_lawful("threshold", otsu, strict=True)
    edges = np.linspace(0.1, 0.9, 9)
    counts = np.array([0, 40, 10, 0, 0, 0, 0, 30, 20, 0], dtype=np.float64)
    rows = PublicScores(scores=np.array([0.2, 0.8]), kinds=("swap", "clean"), domains=("", ""))
    decision = otsu()({"a": ScoreSummary(edges=edges, counts=counts)}, rows)
    assert 0.3 <= decision.value <= 0.7


def test_ordering_takes_turns():
    """Lawful; two domains alternate, each with its best first."""
    assert_lawful("ordering", interleaved, strict=True)
    samples = [Sample(id=str(i), prompt="", response="", domain="aaab"[i]) for i in range(4)]
    order = interleaved()(np.array([0.1, 0.9, 0.5, 0.2]), 0, samples)
    assert order.indices.tolist() == [1, 3, 2, 0]


def test_objective_trims_the_largest():
    """Lawful; three of four losses count."""
    assert_lawful("objective", trimmed, strict=True)
    assert float(trimmed()(torch.tensor([1.0, 2.0, 3.0, 99.0]), {}, {})) == pytest.approx(2.0)


def test_weighting_lies_between_equal_and_counts():
    """Lawful; the exponent's ends are uniform and FedAvg."""
    assert_lawful("weighting", tempered, strict=True)
    assert tempered(alpha=0.0)({"a": 1, "b": 9}) == {"a": 0.5, "b": 0.5}
    assert tempered(alpha=1.0)({"a": 1, "b": 9}) == pytest.approx({"a": 0.1, "b": 0.9})


def test_merging_is_not_pulled_by_one_far_adapter():
    """Lawful; the one far adapter of three is never chosen."""
    assert_lawful("merging", medoid, strict=True)
    near, far = adapter(1), adapter(2, scale=1000.0)
    merged = medoid()(
        {"a": near, "b": adapter(1), "c": far}, {"a": 0.3, "b": 0.3, "c": 0.4}, before()
    )
    assert torch.equal(merged.adapter.a["model.layers.0.q_proj"], near.a["model.layers.0.q_proj"])
