"""Laws of the site's tables: what was written is read, and a missing phase is named."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from fedwinnow.client.runs import tables
from fedwinnow.curation.datatypes import Selection, SignalTable
from fedwinnow.curation.errors import OutputError, ProtocolError
from fedwinnow.curation.scores.selection import select_above

NAN = np.nan


def make_table(rows=3, *, references=("law", "medicine")) -> SignalTable:
    """Signals with a row that has none."""
    status = np.zeros(rows, dtype=np.int8)
    loss = np.linspace(0, 1, rows, dtype=np.float32)
    dot = np.arange(rows * len(references), dtype=np.float32).reshape(rows, len(references))
    if rows:
        status[-1], loss[-1] = 1, NAN
    if rows and references:
        dot[-1] = NAN
    return SignalTable(
        ids=tuple(f"id{i}" for i in range(rows)),
        domains=("law",) * rows,
        checkpoint=2,
        status=status,
        columns={"loss": loss, "dot": dot} if references else {"loss": loss},
        references=references,
        reference_gram=np.arange(len(references) ** 2, dtype=np.float64).reshape(
            len(references), len(references)
        )
        / 3,
        learning_rate=0.1 + 0.2,
    )


@pytest.mark.parametrize(
    "table", [make_table(), make_table(1), make_table(4, references=()), make_table(0)]
)
def test_tables_signals_round_trip(tmp_path, table):
    """Read ∘ write is the identity: types, shapes, NaN, Gram matrix and rate to the last bit."""
    file = tmp_path / "signals-2.parquet"
    tables.write_signals(file, table)
    found = tables.read_signals(file)
    assert (found.ids, found.domains, found.checkpoint) == (table.ids, table.domains, 2)
    assert found.references == table.references
    assert found.learning_rate == table.learning_rate
    np.testing.assert_array_equal(found.status, table.status)
    np.testing.assert_array_equal(found.reference_gram, table.reference_gram)
    assert set(found.columns) == set(table.columns)
    for name, values in table.columns.items():
        np.testing.assert_array_equal(found.columns[name], values)
        assert found.columns[name].dtype == np.float32


def test_tables_signals_are_ordinary_parquet(tmp_path):
    """Any reader sees one column per signal and reference."""
    file = tmp_path / "signals-2.parquet"
    tables.write_signals(file, make_table())
    names = pq.read_table(file).column_names
    assert names == ["id", "domain", "status", "dot.law", "dot.medicine", "loss"]


def test_tables_scores_round_trip(tmp_path):
    """Scores come back in float64, without a score as NaN; edges to the last bit."""
    file = tmp_path / "scores.parquet"
    scores = {"calibrated": np.array([0.1 + 0.2, 1e-300, NAN]), "ifd": np.array([NAN, -1.0, 2.0])}
    edges = np.array([0.1, 1 / 3, 0.7])
    tables.write_scores(file, make_table(), scores, edges)
    for name, values in scores.items():
        ids, status, found = tables.read_scores(file, name)
        assert ids == ("id0", "id1", "id2")
        assert status.dtype == np.int8
        np.testing.assert_array_equal(found, values)
        assert found.dtype == np.float64
    np.testing.assert_array_equal(tables.read_edges(file), edges)
    assert pq.read_table(file)["calibrated"].null_count == 1


def test_tables_selection_round_trip(tmp_path):
    """Each arm's verdicts come back in data order; reasons stand beside the curated ones."""
    file = tmp_path / "selection.parquet"
    ids = ("a", "b", "c")
    curated = Selection(ids=ids, kept=(True, False, True), reasons=("", "below the threshold", ""))
    other = Selection(ids=ids, kept=(False, False, False), reasons=("x",) * 3)
    tables.write_selection(file, {"curated": curated, "random": other})
    assert tables.read_kept(file, "curated").tolist() == [True, False, True]
    assert tables.read_kept(file, "random").tolist() == [False] * 3
    assert pq.read_table(file)["reason"].to_pylist() == list(curated.reasons)
    assert tables.read_kept(file, "curated").dtype == bool


@pytest.mark.parametrize(
    "read",
    [
        tables.read_signals,
        tables.read_edges,
        lambda file: tables.read_scores(file, "ifd"),
        lambda file: tables.read_kept(file, "curated"),
    ],
)
def test_tables_missing_file_is_a_phase_that_did_not_run(tmp_path, read):
    """A table that is not there is a ProtocolError with its name, never a path of the silo."""
    with pytest.raises(ProtocolError, match=r"scores\.parquet is not there") as caught:
        read(tmp_path / "scores.parquet")
    assert str(tmp_path) not in str(caught.value)


def test_tables_scorer_or_arm_that_was_not_computed_is_named(tmp_path):
    """Asking for another scorer or arm than the run's is a ProtocolError with its name."""
    ids = ("a",)
    tables.write_scores(
        tmp_path / "s.parquet", make_table(1), {"ifd": np.array([1.0])}, np.array([0.0, 1.0])
    )
    tables.write_selection(
        tmp_path / "k.parquet", {"curated": Selection(ids=ids, kept=(True,), reasons=("",))}
    )
    with pytest.raises(ProtocolError, match="perplexity"):
        tables.read_scores(tmp_path / "s.parquet", "perplexity")
    with pytest.raises(ProtocolError, match="oracle"):
        tables.read_kept(tmp_path / "k.parquet", "oracle")


def test_tables_are_whole_or_not_there(tmp_path, monkeypatch):
    """A full disk leaves the old table and no other file."""
    file = tmp_path / "signals-2.parquet"
    tables.write_signals(file, make_table())
    before = file.read_bytes()

    def full(_writer, _block):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables.pq.ParquetWriter, "write_table", full)
    with pytest.raises(OutputError, match="No space left"):
        tables.write_signals(file, make_table(4))
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("block", [1, 2, 3])
def test_tables_are_the_same_whatever_the_block(tmp_path, monkeypatch, block):
    """Signals, scores and selection written in blocks of few rows are read back unchanged."""
    monkeypatch.setattr(tables, "_BLOCK", block)
    table, scores = make_table(5), np.array([0.5, np.nan, 0.25, -1.0, 2.0])
    tables.write_signals(tmp_path / "signals.parquet", table)
    again = tables.read_signals(tmp_path / "signals.parquet")
    assert (again.ids, again.domains, again.references) == (
        table.ids,
        table.domains,
        table.references,
    )
    for name, values in table.columns.items():
        np.testing.assert_array_equal(again.columns[name], values)
    assert len({id(name) for name in again.domains}) == len(set(table.domains))
    tables.write_scores(tmp_path / "scores.parquet", table, {"s": scores}, np.array([0.0, 1.0]))
    ids, status, found = tables.read_scores(tmp_path / "scores.parquet", "s")
    assert ids == table.ids
    np.testing.assert_array_equal(status, table.status)
    np.testing.assert_array_equal(found, scores)
    chosen = select_above(table.ids, scores, table.status, 0.3)
    tables.write_selection(tmp_path / "selection.parquet", {"curated": chosen})
    reasons = tables.read_reasons(tmp_path / "selection.parquet")
    assert tuple(reasons[name] for name in table.ids) == chosen.reasons


def test_tables_metadata_holds_no_text_of_a_sample(tmp_path):
    """Beside ids, domains and numbers only settings are noted."""
    file = tmp_path / "signals-2.parquet"
    tables.write_signals(file, make_table())
    noted = json.loads(pq.read_table(file).schema.metadata[b"fedwinnow"])
    assert set(noted) == {"checkpoint", "references", "gram", "learning_rate", "columns"}
