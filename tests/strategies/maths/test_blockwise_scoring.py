"""Laws of scoring in blocks: the same scores, whatever the block."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from fedwinnow.curation.datatypes import Fitted, Trajectory
from fedwinnow.strategies.conformance.scorer_laws import made_up, public_rows
from fedwinnow.strategies.maths import blockwise_scoring
from fedwinnow.strategies.registry import BUILT_IN, build


@pytest.mark.parametrize("name", sorted(BUILT_IN["scorer"]))
def test_blocks_of_scores_are_the_scores_of_the_whole(name, monkeypatch):
    """Every built-in scorer gives each row the same score in blocks of seven rows."""
    scorer = build("scorer", name, {})
    trajectory = made_up(scorer.columns)
    fitted = scorer.fit(public_rows(trajectory))
    private = made_up(scorer.columns, seed=1)
    private[-1].status[3] = 2
    whole = scorer.score(private, fitted)
    monkeypatch.setattr(blockwise_scoring, "BLOCK", 7)
    found = blockwise_scoring.score_in_blocks(scorer, private, fitted)
    np.testing.assert_allclose(found, whole, rtol=1e-9, atol=1e-12)
    assert np.isnan(found[3])


@dataclass
class Noting:
    """Scores a row by its place among those that it was asked for together."""

    asked: list[Trajectory] = field(default_factory=list)
    columns: frozenset[str] = frozenset({"loss"})
    unit: str = "place"

    def fit(self, public):
        """Nothing but how many rows there are."""
        return Fitted(schema=f"noting/{len(public.kinds)}")

    def score(self, trajectory, fitted):
        """See the class."""
        assert fitted.schema == "noting/60"
        self.asked.append(trajectory)
        return np.arange(len(trajectory[0].ids), dtype=float)


def test_blocks_leave_small_silos_as_they_are():
    """Up to one block the scorer is asked once, with the very trajectory."""
    scorer, trajectory = Noting(), made_up(frozenset({"loss"}))
    blockwise_scoring.score_in_blocks(scorer, trajectory, scorer.fit(public_rows(trajectory)))
    assert len(scorer.asked) == 1
    assert scorer.asked[0] is trajectory


def test_blocks_cover_every_row_once(monkeypatch):
    """Each row comes once, in order, also where the last block is short."""
    scorer, trajectory = Noting(), made_up(frozenset({"loss"}))
    monkeypatch.setattr(blockwise_scoring, "BLOCK", 8)
    found = blockwise_scoring.score_in_blocks(
        scorer, trajectory, scorer.fit(public_rows(trajectory))
    )
    assert sum((part[0].ids for part in scorer.asked), ()) == trajectory[0].ids
    assert found.tolist() == [i % 8 for i in range(len(found))]
