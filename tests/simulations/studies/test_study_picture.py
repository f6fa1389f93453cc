"""Laws of a study's picture: everything that the page compares is drawn, under its name."""

from fedwinnow.simulations.studies.picture import picture

DIFFERENCE = {"mean": 0.01, "low": -0.01, "high": 0.03}


def scored(split: str, scorer: str, auroc: float | None) -> dict:
    """A scorer's row of a study."""
    return {"arm": None, "split": split, "scorer": scorer, "auroc_pooled": auroc}


def result_of(compared: dict) -> dict:
    """A study of two splits."""
    return {
        "rows": [
            scored("one", "less", 0.7),
            scored("two", "less", 0.6),
            scored("two", "ifd", None),
        ],
        "differences": {"one": {"keep_all": DIFFERENCE}, "two": {}},
        "compared": compared,
    }


def test_picture_of_compared_splits_draws_each_against_the_first():
    """Every split but the first, and the first one's other arms; no scorer."""
    drawn = picture(result_of({"one": None, "two": DIFFERENCE}))
    assert "<!-- two -->" in drawn
    assert "<!-- one, keep_all -->" in drawn
    assert "<!-- less -->" not in drawn


def test_picture_of_scorers_leaves_out_who_has_no_auroc():
    """Each scorer with a figure, in each split; the same text twice for the same rows."""
    drawn = picture(result_of({}))
    assert drawn.count("<!-- less -->") == 2
    assert "<!-- ifd -->" not in drawn
    assert len(drawn) == len(picture(result_of({})))
