"""Rows go through every format and come back as they were, or one error names the place."""

import csv
import datetime as dt
import decimal
import gzip
import io
import json
import math
import tempfile
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedwinnow.client.data_files import json_rows
from fedwinnow.client.data_files.kept_rows import check_kept, write_kept
from fedwinnow.client.data_files.readers import read_rows
from fedwinnow.client.data_files.sources import ending_of, find_source
from fedwinnow.curation.errors import DataError

anything = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
awkward = anything | st.sampled_from(
    ['"', '""', ",", ";", "\n", "\r\n", "\r", " x ", '"a",b', "\0"]
)
name = st.text("ab[]*?.,; \"'\n", min_size=1, max_size=4)


def rows_of(source):
    return [dict(row.values) for row in read_rows(str(source))]


def kept(source, chosen, target):
    """Write the chosen rows of a source as ``fedwinnow score --kept`` does."""
    found = find_source(str(source))
    check_kept(found, target)
    write_kept(found, chosen, target, ending_of(target))
    return target


def strict_lines(path):
    """Return the values of JSON lines; NaN and Infinity are errors."""

    def refuse(constant):
        pytest.fail(f"{constant} is no JSON")

    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line, parse_constant=refuse) for line in lines]


@st.composite
def tables(draw):
    """Unique column names, the first perhaps empty as pandas writes it, and rows of texts."""
    names = draw(st.lists(name, min_size=2, max_size=4, unique=True))
    names[0] = draw(st.sampled_from([names[0], ""]))
    row = st.lists(awkward, min_size=len(names), max_size=len(names))
    return names, draw(st.lists(row, min_size=1, max_size=5))


def csv_bytes(names, rows, ending, mark):
    text = io.StringIO(newline="")
    delimiter = "\t" if ".tsv" in ending else ","
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([names, *rows])
    content = mark + text.getvalue().encode()
    return gzip.compress(content) if ending.endswith(".gz") else content


@settings(max_examples=25)
@given(
    tables(),
    st.sampled_from([".csv", ".CSV", ".csv.gz", ".tsv"]),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.data(),
)
def test_csv_rows_come_back(table, ending, mark, data):
    """Algebra: whatever the texts, a CSV file and its kept rows give names, texts and order."""
    names, rows = table
    chosen = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"a[1]*?{ending}"
        source.write_bytes(csv_bytes(names, rows, ending, mark))
        expected = [dict(zip(names, row, strict=True)) for row in rows]
        assert rows_of(source) == expected
        some = [row for row, keep in zip(expected, chosen, strict=True) if keep]
        assert strict_lines(kept(source, chosen, Path(folder) / "k.jsonl")) == some
        assert rows_of(kept(source, chosen, Path(folder) / "k.parquet")) == some
        assert rows_of(kept(source, chosen, Path(folder) / "k.csv")) == some


@settings(max_examples=25)
@given(tables(), st.integers(0, 4), st.sampled_from(["cut", "add", "trail"]), awkward)
def test_ragged_csv_names_its_line_or_loses_nothing(table, place, kind, extra):
    """Law: a field too few or too many is an error of its line; empty ones at the end are none."""
    names, rows = table
    at = place % len(rows)
    changed = [*rows[:at], [*rows[at], "" if kind == "trail" else extra], *rows[at + 1 :]]
    if kind == "cut":
        changed[at] = rows[at][:-1]
    content = csv_bytes(names, changed, ".csv", b"")
    before = csv_bytes(names, changed[:at], ".csv", b"")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "a.csv"
        source.write_bytes(content)
        if kind == "trail" or (kind == "add" and not extra):
            assert rows_of(source) == [dict(zip(names, row, strict=True)) for row in rows]
            return
        line = before.count(b"\n") + 1
        with pytest.raises(DataError, match=rf"a\.csv: line {line}: expected {len(names)} fields"):
            rows_of(source)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | anything,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(anything, inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=25)
@given(
    st.lists(st.dictionaries(anything, values, min_size=1, max_size=3), min_size=1, max_size=4),
    st.sampled_from([".jsonl", ".jsonl.gz", ".JSONL", ".json", ".json.gz", "lines.json"]),
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
    st.sampled_from([1, 2**20]),
    st.data(),
)
def test_json_rows_come_back_as_their_own_text(rows, ending, indent, ascii_only, piece, data):
    """Algebra: JSON of any layout, read in any pieces, gives its values, and kept its own text."""
    assume("Infinity" not in json.dumps(rows))
    listed = ".json" in ending and "jsonl" not in ending.lower() and "lines" not in ending
    if listed:
        text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    else:
        lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
        lines[0] = '{"n": 1.000000000000000000001, "half a character": "\\ud800"}'
        text = "\n".join(lines)
    content = text.encode()
    chosen = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"a{ending}"
        source.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
        read = json.loads(text) if listed else [json.loads(line) for line in text.split("\n")]
        with mock.patch.object(json_rows, "_PIECE", piece):
            assert rows_of(source) == read
        file = kept(source, chosen, Path(folder) / "k.jsonl")
        assert strict_lines(file) == [row for row, keep in zip(read, chosen, strict=True) if keep]
        if not listed:
            lines = [line for line, keep in zip(text.split("\n"), chosen, strict=True) if keep]
            assert file.read_text(encoding="utf-8").split("\n")[:-1] == lines


NOW = dt.datetime(2020, 2, 29, 12, 30, 15, 123456)  # noqa: DTZ001 - Arrow holds such times
ARROW = {
    "string": (pa.string(), ["a", "", "ü\n"]),
    "large string": (pa.large_string(), ["a", None]),
    "string view": (pa.string_view(), ["a longer text than fits", None]),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), ["a", "b", "a"]),
    "dictionary of large": (pa.dictionary(pa.int32(), pa.large_string()), ["a", None]),
    "list": (pa.list_(pa.string()), [["a", None], [], None]),
    "large list": (pa.large_list(pa.int64()), [[2**60 + 1], None]),
    "fixed list": (pa.list_(pa.int32(), 2), [[1, 2], None]),
    "list of dictionaries": (pa.list_(pa.dictionary(pa.int8(), pa.string())), [["a", "a"], []]),
    "struct": (pa.struct([("a", pa.int64()), ("b", pa.list_(pa.date32()))]), [{"a": 1}, None]),
    "map": (pa.map_(pa.string(), pa.int64()), [[("k", 1)], [], None]),
    "map of numbers": (pa.map_(pa.int32(), pa.string()), [[(1, "a")], None]),
    "integer": (pa.int64(), [2**53 + 1, -(2**63), None]),
    "unsigned": (pa.uint64(), [2**64 - 1, 0]),
    "float": (pa.float32(), [0.1, -0.0, None]),
    "truth": (pa.bool_(), [True, None]),
    "null": (pa.null(), [None]),
    "date": (pa.date32(), [NOW.date(), None]),
    "time": (pa.time64("ns"), [1, None]),
    "moment": (pa.timestamp("ns"), [1_577_872_800_000_000_001, None]),
    "moment with zone": (pa.timestamp("us", "Europe/Oslo"), [NOW, None]),
    "decimal": (pa.decimal128(20, 4), [decimal.Decimal("1.1000"), None]),
    "nan": (pa.float64(), [math.nan, 1.0]),
    "infinity": (pa.list_(pa.float64()), [[1.0, math.inf], None]),
    "bytes": (pa.binary(), [b"\xff\x00", None]),
    "duration": (pa.duration("s"), [dt.timedelta(1), None]),
}
"""Arrow type and values of a column, by name; the last four have no form in JSON."""
UNFIT = {"nan", "infinity", "bytes", "duration"}


def array(kind, count, start):
    """Return ``count`` values of a kind, in turn, of its exact type."""
    of, given_values = ARROW[kind]
    items = [given_values[(start + i) % len(given_values)] for i in range(count)]
    if kind == "list of dictionaries":
        offsets = [0]
        for item in items:
            offsets.append(offsets[-1] + len(item))
        flat = pa.array([text for item in items for text in item], pa.string())
        return pa.ListArray.from_arrays(offsets, flat.cast(of.value_type))
    return pa.array(items, of)


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from(sorted(ARROW)), min_size=1, max_size=4, unique=True),
    st.integers(1, 4),
    st.integers(0, 2),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.integers(1, 3),
)
def test_arrow_tables_come_back_with_their_types(kinds, count, start, keep, group):
    """Algebra: a kept Parquet file equals the chosen rows bit for bit; JSON too, or an error."""
    table = pa.table({kind: array(kind, count, start) for kind in kinds})
    chosen = keep[:count]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "a.parquet"
        pq.write_table(table, source, row_group_size=group)
        stored = pq.read_table(source)
        back = pq.read_table(kept(source, chosen, Path(folder) / "k.parquet"))
        assert back.schema.equals(stored.schema, check_metadata=True)
        for kind in kinds:
            values = zip(stored[kind].to_pylist(), chosen, strict=True)
            expected = [value for value, keep in values if keep]
            assert repr(back[kind].to_pylist()) == repr(expected)  # a NaN equals itself here
        bad = [
            (row, kind) for row in range(count) for kind in kinds
            if kind in UNFIT and unfit(table[kind][row].as_py())
        ]  # fmt: skip
        if bad:
            at = rf"a\.parquet: row {bad[0][0] + 1}, .* has no form in JSON"
            with pytest.raises(DataError, match=at):
                kept(source, chosen, Path(folder) / "k.jsonl")
            return
        lines = strict_lines(kept(source, chosen, Path(folder) / "k.jsonl"))
        read = [row for row, keep in zip(rows_of(source), chosen, strict=True) if keep]
        assert lines == json.loads(json.dumps(read))


def unfit(value):
    """Return whether JSON has no form of a value."""
    if isinstance(value, list):
        return any(map(unfit, value))
    finite = not isinstance(value, float) or math.isfinite(value)
    return isinstance(value, bytes | dt.timedelta) or not finite


def test_arrow_values_have_these_texts_in_json(tmp_path):
    """Oracle: the documented forms of dates, times, decimals, maps and dictionaries."""
    kinds = [
        "date",
        "time",
        "moment",
        "moment with zone",
        "decimal",
        "map",
        "dictionary",
        "integer",
    ]
    pq.write_table(pa.table({kind: array(kind, 1, 0) for kind in kinds}), tmp_path / "a.parquet")
    (line,) = strict_lines(kept(tmp_path / "a.parquet", [True], tmp_path / "k.jsonl"))
    assert line == {
        "date": "2020-02-29",
        "time": "00:00:00.000000001",
        "moment": "2020-01-01 10:00:00.000000001",
        "moment with zone": "2020-02-29 13:30:15.123456+0100",
        "decimal": "1.1000",
        "map": {"k": 1},
        "dictionary": "a",
        "integer": 2**53 + 1,
    }


@settings(max_examples=25)
@given(st.lists(st.lists(awkward, max_size=3), min_size=1, max_size=4), st.data())
def test_shards_of_a_folder_come_back_in_order(shards, data):
    """Algebra: rows of a folder are those of its files by name; hidden and empty ones add none."""
    texts = [text for shard in shards for text in shard]
    assume(texts)
    chosen = data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "in[*]?"
        place.mkdir()
        for number, shard in enumerate(shards):
            lines = "".join(json.dumps({"x": text}) + "\n" for text in shard)
            (place / f"s{number}[?].jsonl").write_text(lines, encoding="utf-8")
        (place / "._s0[?].jsonl").write_bytes(b"\0\5\x16\7")
        (place / ".hidden.csv").write_bytes(b"x")
        assert [row["x"] for row in rows_of(place)] == texts
        lines = strict_lines(kept(place, chosen, Path(folder) / "k.jsonl"))
        some = [text for text, keep in zip(texts, chosen, strict=True) if keep]
        assert [line["x"] for line in lines] == some
