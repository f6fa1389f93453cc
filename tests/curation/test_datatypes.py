"""Laws of the nouns: what they print, and their tables."""

import sys

import numpy as np
import pytest
import torch

from fedwinnow.curation.datatypes import (
    Adapter,
    Fitted,
    PublicRows,
    Sample,
    ScoreSummary,
    Selection,
    SignalTable,
    SparseAdapter,
    Turn,
    is_fingerprint,
)
from fedwinnow.curation.errors import ConfigError

TEXT = "hidden text"


def table(checkpoint=0, number=3):
    """A table of one flat signal and one with two references."""
    return SignalTable(
        ids=tuple(f"id{i}" for i in range(number)),
        domains=("law",) * number,
        checkpoint=checkpoint,
        status=np.zeros(number, dtype=np.int8),
        columns={
            "loss": np.arange(number, dtype=np.float32),
            "dot": np.arange(2 * number, dtype=np.float32).reshape(number, 2),
        },
        references=("law", "medicine"),
    )


def test_repr_counts_and_names_and_shows_no_content():
    """A printed noun is one short line without texts, scores or arrays."""
    sample = Sample(
        id="0af3", prompt=TEXT, response=f"{TEXT}!", domain=TEXT,
        history=(Turn("user", TEXT),), labels={TEXT: TEXT},
    )  # fmt: skip
    a, b = {"q": torch.ones(2, 3)}, {"q": torch.ones(4, 2)}
    expected = {
        "Sample(0af3, prompt of 11 characters, response of 12 characters, with 1 other turn)": (
            sample
        ),
        "SignalTable(3 samples, checkpoint 0, columns: dot, loss)": table(),
        "PublicRows(3 rows, 1 clean and 2 corrupted, checkpoints: 0, 1)": PublicRows(
            trajectory=(table(), table(1)), kinds=("clean", "cut", "swap"), parents=("a",) * 3
        ),
        "Fitted(less/1, 4 public scores, forecast AUROC 0.750)": Fitted(
            schema="less/1:loss", public_scores=np.arange(4.0), forecast={"auroc": 0.75}
        ),
        "ScoreSummary(6 samples, 3 cells, edges 0.25 to 0.75)": ScoreSummary(
            edges=np.array([0.25, 0.75]), counts=np.array([1.0, 2.0, 3.0])
        ),
        "Selection(1 of 2 samples kept)": Selection(
            ids=("a", "b"), kept=(True, False), reasons=("", "no score")
        ),
        "Adapter(rank 2, 1 module, base some/model)": Adapter(
            base="some/model", a=a, b=b, scales={"q": 1.0}
        ),
        "SparseAdapter(2 entries of 1 parameter, base 012345678901)": SparseAdapter(
            base="0123456789012345" * 4,
            indices={"w": torch.tensor([0, 3])},
            values={"w": torch.ones(2)},
            shapes={"w": (2, 2)},
        ),
    }
    for words, noun in expected.items():
        assert repr(noun) == words
        assert TEXT not in repr(noun)


def test_table_of_signals_holds_every_number_under_its_name():
    """A row per sample; a signal with several references is a column for each."""
    found = table().to_arrow().to_pydict()
    assert list(found) == ["id", "domain", "status", "dot.law", "dot.medicine", "loss"]
    assert found["dot.medicine"] == [1.0, 3.0, 5.0]
    assert table().to_pandas().to_dict("list") == found


def test_table_of_public_rows_names_the_checkpoint_of_each_signal():
    """A row per public row; signals of all checkpoints stand side by side."""
    rows = PublicRows(
        trajectory=(table(), table(1)), kinds=("clean", "cut", "swap"), parents=("a", "a", "b")
    )
    found = rows.to_pandas()
    assert list(found["kind"]) == ["clean", "cut", "swap"]
    assert list(found["dot.law@1"]) == [0.0, 2.0, 4.0]
    assert {"status@0", "loss@0", "status@1", "loss@1"} <= set(found.columns)


def test_table_of_a_selection_says_why():
    """Each sample, whether it is kept, and why not."""
    selection = Selection(ids=("a", "b"), kept=(True, False), reasons=("", "no score"))
    expected = {"id": ["a", "b"], "kept": [True, False], "reason": ["", "no score"]}
    assert selection.to_arrow().to_pydict() == expected
    assert selection.to_pandas().to_dict("list") == expected


def test_table_without_pandas_is_an_error_with_its_cure(monkeypatch):
    """Where pandas is missing, the error names the command that installs it."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedwinnow\[notebook\]'"):
        table().to_pandas()
    assert table().to_arrow().num_rows == 3


def test_name_of_a_base_is_no_fingerprint_by_its_length():
    """Edge: a folder whose path has 64 characters stays a folder."""
    folder = "/" + "m" * 63
    assert not is_fingerprint(folder)
    assert not is_fingerprint("A" * 64)
    assert is_fingerprint("0a" * 32)
