"""Laws of a study's picture: everything that the page compares is drawn, under its name."""

from fedwinnow.simulations.studies.picture import study_picture
from fedwinnow.simulations.studies.result import (
    PooledDifference,
    ScorerRow,
    SplitDifference,
    StudiedRun,
    StudyResult,
)

INTERVAL = {"mean": 0.01, "low": -0.01, "high": 0.03, "items": 4}
DIFFERENCE = SplitDifference(**INTERVAL)


def scored(split: str, scorer: str, auroc: float | None) -> ScorerRow:
    """A scorer's row of a study."""
    run = StudiedRun(
        study="made", model="m", dataset="d", split=split, n_private=4, n_anchors=4,
        noise_mix="swap", seed=0, seconds=1.0, commit=None,
    )  # fmt: skip
    return ScorerRow(
        run=run, scorer=scorer, threshold="target_recall", auroc_pooled=auroc, auroc_within=None,
        auroc_by_corruption={}, auroc_swap=None, auroc_left_out=None,
        auroc_left_out_by_corruption={}, recall=0.9, recall_by_site={}, precision=0.9,
        accuracy=0.9,
    )  # fmt: skip


def result_of(compared: dict[str, SplitDifference | None]) -> StudyResult:
    """A study of two splits."""
    rows = (scored("one", "less", 0.7), scored("two", "less", 0.6), scored("two", "ifd", None))
    pooled = PooledDifference(**INTERVAL, by_seed={})
    return StudyResult(
        study="made", command="c", machine="CPU", commit=None, seeds=(0,), about={},
        differences={"one": {"keep_all": pooled}, "two": {}}, recovered={}, compared=compared,
        rows=rows,
    )  # fmt: skip


def test_picture_of_compared_splits_draws_each_against_the_first():
    """Every split but the first, and the first one's other arms; no scorer."""
    drawn = study_picture(result_of({"one": None, "two": DIFFERENCE}))
    assert "<!-- two -->" in drawn
    assert "<!-- one, keep_all -->" in drawn
    assert "<!-- less -->" not in drawn


def test_picture_of_scorers_leaves_out_who_has_no_auroc():
    """Each scorer with a figure, in each split; the same text twice for the same rows."""
    drawn = study_picture(result_of({}))
    assert drawn.count("<!-- less -->") == 2
    assert "<!-- ifd -->" not in drawn
    assert drawn == study_picture(result_of({}))
