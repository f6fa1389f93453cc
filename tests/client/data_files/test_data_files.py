"""Data files: every fault by file and line, and which files of a folder are read."""

import gzip
import json
import re
import tracemalloc

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedwinnow.client.data_files.kept_rows import check_kept, write_kept
from fedwinnow.client.data_files.readers import columns_of, read_rows
from fedwinnow.client.data_files.sources import find_source
from fedwinnow.curation.errors import DataError, OutputError

GOOD = '{"prompt": "p", "response": "r"}\n'
HEAD = "prompt,response\n"
FAULTS = {
    "UTF-16": ("x.csv", HEAD.encode("utf-16"), r"x\.csv: line 1: UTF-16 or UTF-32 text; convert"),
    "UTF-16 without mark": ("x.jsonl", GOOD.encode("utf-16-le"), "line 1: UTF-16"),
    "Latin-1": ("x.csv", HEAD.encode() + b"a,b\nc,\xe9\n", r"x\.csv: line 3: not UTF-8"),
    "Latin-1 list": ("x.json", b'[{"a": "\xe9"}]', r"x\.json: line 1 or after: not UTF-8"),
    "hidden gzip": ("x.jsonl", gzip.compress(GOOD.encode()), r"gzip; end its name with \.gz"),
    "no gzip": ("x.csv.gz", HEAD.encode(), r"x\.csv\.gz: broken gzip"),
    "cut gzip": ("x.jsonl.gz", gzip.compress(GOOD.encode() * 99)[:-9], r"broken gzip"),
    "semicolons": ("x.csv", "prompt;response\na;b\n", "one column that holds a semicolon.*comma"),
    "tabs": ("x.csv", "prompt\tresponse\na\tb\n", r"one column that holds a tab.*as \.tsv"),
    "name twice": ("x.csv", "a,b,a\n1,2,3\n", "line 1: the header holds 'a' more than once"),
    "no name": ("x.csv", ",\n1,2\n", "line 1: the header names no column"),
    "open quote": ("x.csv", HEAD + 'a,b\n"c,d\ne,f\n', r"line 3: broken CSV \(unexpected end"),
    "lone quote": ("x.csv", HEAD + 'a,"b"c"\n', "line 2: broken CSV .*double the quotes"),
    "old Mac lines": ("x.csv", "a,b\rc,d\r", "line 1: broken CSV .a carriage return without"),
    "line for Excel": (
        "x.csv",
        "sep=;\na;b\n1;2\n",
        r"line 1: a line for Excel .* remove the line",
    ),
    "line for Excel, comma": ("x.csv", "\ufeffsep=,\na,b\n1,2\n", "line 1: a line for Excel"),
    "object on lines": ("x.jsonl", '{\n"a": 1\n}\n', r"line 1: .*on one line, or end .* \.json"),
    "list on lines": ("x.jsonl", "[\n" + GOOD + "]", r"line 1: .*on one line, or end .* \.json"),
    "two objects": ("x.jsonl", GOOD + GOOD[:-1] + GOOD, "line 2: .*write one object a line"),
    "many digits": ("x.jsonl", '{"a": ' + "9" * 5000 + "}", "line 1: .*number of too many digits"),
    "lists of a list": ("x.json", '[["a"]]', "got list; write each row as an object"),
    "unnamed values": ("x.csv", "a,\n1,\n1,2\n", r"line 3: expected 1 field \(a\), got 2"),
    "cut row": ("x.csv", HEAD + '"a\nb",c\nd\n', "line 4: expected 2 fields .*got 1"),
    "key twice": ("x.jsonl", GOOD + '{"b": {"c": 1, "c": 2}}', "line 2: .*'c' is there twice"),
    "NaN": ("x.jsonl", GOOD + '{"a": NaN}', r"line 2: broken JSON \(NaN is no JSON"),
    "infinity": ("x.json", '[{"a": -Infinity}]', r"line 1: broken JSON \(-Infinity is no JSON"),
    "list of numbers": ("x.json", "[1]", "line 1: expected a JSON object, got int"),
    "no end": ("x.json", '[{"a": 1},\n {"a": 2}', "line 2: .*expected a comma or the end"),
    "open list": ("x.json", '[{"a": 1},\n', "line 2: broken JSON .*no end"),
    "comma at the end": ("x.json", '[{"a": 1},\n]', "line 2: .*comma stands before the end"),
    "two lists": ("x.json", '[{"a": 1}]\n[]', "line 2: .*something follows the list"),
    "cut object": ("x.json", '[{"a": 1},\n\n{"a": ', "line 3: broken JSON"),
    "deep list": ("x.json", "[" + "[" * 100_000, r"x\.json: line 1"),
}


def read(source):
    return [dict(row.values) for row in read_rows(str(source))]


@pytest.mark.parametrize("case", FAULTS)
def test_fault_names_file_and_line(tmp_path, case):
    """Edge: one DataError on one line that names the file, the line and what to change."""
    name, content, match = FAULTS[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=match) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_rows_name_the_line_where_they_begin(tmp_path):
    """Law: places are lines of the file, over quoted line breaks, blank lines and pretty JSON."""
    (tmp_path / "x.csv").write_text('\na,b\n\n"1\n2",3\n4,5\n', encoding="utf-8")
    (tmp_path / "x.json").write_text('[\n{"a":\n1},\n\n{"a": 2}\n]\n', encoding="utf-8")
    for name, lines in (("x.csv", [4, 6]), ("x.json", [2, 5])):
        rows = list(read_rows(str(tmp_path / name)))
        assert [row.place for row in rows] == [f"{tmp_path / name}: line {n}" for n in lines]


def test_unnamed_column_of_pandas_is_kept_apart(tmp_path):
    """Law: an index without a name shifts nothing; it has the name "" and comes back."""
    (tmp_path / "x.csv").write_text(",prompt,response\n0,p,r\n1,q,s\n", encoding="utf-8")
    assert columns_of(str(tmp_path / "x.csv")) == ("", "prompt", "response")
    assert read(tmp_path / "x.csv")[1] == {"": "1", "prompt": "q", "response": "s"}
    write_kept(find_source(str(tmp_path / "x.csv")), [False, True], tmp_path / "k", ".csv")
    assert (tmp_path / "k").read_bytes() == b",prompt,response\r\n1,q,s\r\n"


def test_long_list_is_read_piece_by_piece(tmp_path):
    """Memory: 8 MB of a list on one line are read with less than 6 MB held."""
    row = {"text": "x" * 1000}
    (tmp_path / "x.json").write_text(json.dumps([row] * 8_000), encoding="utf-8")
    tracemalloc.start()
    assert sum(1 for _ in read_rows(str(tmp_path / "x.json"))) == 8_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6


def shard(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"x": [text] if text else pa.array([], pa.string())}), path)
    else:
        path.write_text(json.dumps({"x": text}) + "\n" if text else "", encoding="utf-8")


def test_wide_parquet_rows_are_read_in_small_batches(tmp_path):
    """Memory: 80 rows of 1 MB in one row group are read with less than 50 MB held at a time."""
    table = pa.table({"x": [str(i) for i in range(80)], "picture": [b"p" * 10**6] * 80})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    del table
    tracemalloc.start()
    assert [row.values["x"] for row in read_rows(str(tmp_path / "a.parquet"))][-1] == "79"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e7


FOLDERS = {
    "shards": (["b.jsonl", "a.jsonl"], "", ["a.jsonl", "b.jsonl"], ()),
    "hidden": (["a.jsonl", "._a.jsonl", ".b.csv"], "", ["a.jsonl"], ()),
    "hub": (
        [f"data/{name}.parquet" for name in ("train-00001-of-2", "train-00000-of-2", "test-0")],
        "",
        ["train-00000-of-2.parquet", "train-00001-of-2.parquet"],
        ("test (1 file)",),
    ),
    "named split": (["train.jsonl", "dev.jsonl", "test.jsonl"], ":validation", ["dev.jsonl"], None),
    "test alone": (["test-0.jsonl", "test-1.jsonl"], "", ["test-0.jsonl", "test-1.jsonl"], ()),
    "beside train": (["train.jsonl", "more.jsonl"], "", ["train.jsonl"], ("no split (1 file)",)),
    "descriptions": (["a.json", "dataset_infos.json"], "", ["a.json"], ()),
    "any case": (["A.JSONL", "B.jsonl"], "", ["A.JSONL", "B.jsonl"], ()),
    "test set": (["trainset.jsonl", "testset.jsonl"], "", ["trainset.jsonl"], ("test (1 file)",)),
    "other kinds": (
        ["a.jsonl", "b.jsonl.zst", "c.ARROW", "README.md", "desk.ini", "sub/d.csv", ".git/e.csv"],
        "",
        ["a.jsonl"],
        ("b.jsonl.zst", "c.ARROW", "folder sub"),
    ),
    "words": (["training_set.jsonl", "contest.jsonl"], "", ["training_set.jsonl"], None),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_folder_is_read_by_split(tmp_path, case):
    """Law: files of one split are read by name, and those beside them are told."""
    names, suffix, files, left_out = FOLDERS[case]
    for name in names:
        shard(tmp_path / "in", name, name)
    found = find_source(f"{tmp_path / 'in'}{suffix}")
    assert [file.name for file in found.files] == files
    assert [row["x"].rpartition("/")[2] for row in read(f"{tmp_path / 'in'}{suffix}")] == files
    assert left_out is None or found.left_out == left_out


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_empty_shard_among_full_ones_adds_nothing(tmp_path, ending):
    """Edge: a shard without rows is passed over; a file of no byte is told."""
    for name, text in (("a", "1"), ("b", ""), ("c", "2")):
        shard(tmp_path / "in", name + ending, text)
    assert [row["x"] for row in read(tmp_path / "in")] == ["1", "2"]
    told = find_source(str(tmp_path / "in")).left_out
    assert told == (("b.jsonl (empty)",) if ending == ".jsonl" else ())


UNCLEAR = {
    "two kinds": (["a.jsonl", "b.parquet"], "", r"files of one kind.*found \.jsonl, \.parquet"),
    "two packings": (["a.jsonl", "a.jsonl.gz"], "", r"found \.jsonl, \.jsonl\.gz"),
    "no train": (["test.jsonl", "dev.jsonl"], "", "no split 'train', only validation, test"),
    "test beside others": (["a.jsonl", "test.jsonl"], "", "only test, files of no split"),
    "no such split": (["train.jsonl"], ":test", "no split 'test', only train"),
    "below": (["main/train.jsonl"], "", r"found none of them; name one of its folders \(main\)"),
    "no data": (["notes.txt"], "", "found none of them"),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_unclear_folder_is_refused(tmp_path, case):
    """Edge: what could mean several things is an error that lists them."""
    names, suffix, match = UNCLEAR[case]
    for name in names:
        shard(tmp_path / "in", name, "1")
    with pytest.raises(DataError, match=match):
        read(f"{tmp_path / 'in'}{suffix}")


def test_broken_link_among_shards_is_refused(tmp_path):
    """Edge: a shard whose link leads nowhere is an error, as its rows would be missing."""
    shard(tmp_path / "in", "a.jsonl", "1")
    (tmp_path / "in" / "b.jsonl").symlink_to(tmp_path / "away.jsonl")
    with pytest.raises(DataError, match=r"in/b\.jsonl: a link to a file that is not there; fetch"):
        read(tmp_path / "in")


def test_saved_split_is_named_after_the_folder(tmp_path):
    """Law: ``folder:test`` reads that split of what ``save_to_disk`` wrote, its types kept."""
    rows = datasets.Dataset.from_dict({"x": ["1", "2"], "n": [[1], None]})
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "in")
    assert read(f"{tmp_path / 'in'}:test") == [{"x": "2", "n": None}]
    source = find_source(str(tmp_path / "in"))
    check_kept(source, tmp_path / "k.parquet")
    write_kept(source, [False, True], tmp_path / "k.parquet", ".parquet")
    kept = pq.read_table(tmp_path / "k.parquet")
    assert kept.to_pylist() == [{"x": "2", "n": None}]
    assert kept.schema.field("n").type == rows.features.arrow_schema.field("n").type


def test_kept_refuses_early_what_it_could_not_hold(tmp_path):
    """Edge: endings that would change rows, and shards of other columns, are named beforehand."""
    for name, columns in (("a", ["x"]), ("b", ["x", "y"])):
        table = pa.table({column: ["1"] for column in columns})
        for ending in ("p", "c"):
            (tmp_path / ending).mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "p" / f"{name}.parquet")
        text = ",".join(columns) + "\n" + ",".join("1" for _ in columns) + "\n"
        (tmp_path / "c" / f"{name}.csv").write_text(text, encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(GOOD, encoding="utf-8")
    lines, tables, texts = (find_source(str(tmp_path / name)) for name in ("a.jsonl", "p", "c"))
    for source, name in ((lines, "k.csv"), (lines, "k"), (lines, "k.parquet"), (tables, "k.csv")):
        with pytest.raises(OutputError, match=r"--kept .*unchanged as \.\w+.*another ending"):
            check_kept(source, tmp_path / name)
    for source, name in ((tables, "k.parquet"), (texts, "k.csv"), (texts, "k.parquet")):
        with pytest.raises(DataError, match=r"b\.\w+: has other columns.*\.jsonl"):
            check_kept(source, tmp_path / name)
        check_kept(source, tmp_path / "k.jsonl")


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_kept_of_a_changed_source_is_refused(tmp_path, ending):
    """Edge: a file that grew or shrank since it was scored gives no kept rows."""
    (tmp_path / "x.csv").write_text("a,b\n1,2\n3,4\n", encoding="utf-8")
    source = find_source(str(tmp_path / "x.csv"))
    for chosen in ([True], [True] * 3):
        match = re.escape(f"held {len(chosen)} rows when they were scored and holds 2 now")
        with pytest.raises(DataError, match=match):
            write_kept(source, chosen, tmp_path / "k", ending)
