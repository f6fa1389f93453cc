"""Opening data: every format, lazily, and every bad input by name."""

import dataclasses
import gc
import json
import socket
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import ROOT

from fedwinnow.client.data import samples as data_module
from fedwinnow.client.data.content_id import content_id
from fedwinnow.client.data.samples import data_hash, open_samples
from fedwinnow.client.data_files.readers import columns_of
from fedwinnow.curation.config.scoring import ColumnsSection
from fedwinnow.curation.datatypes import Turn
from fedwinnow.curation.errors import DataError, OutputError

PLAIN = ColumnsSection()
ROWS = [
    {"prompt": "What is iron?", "response": "A metal.", "topic": "law", "licence": "CC0"},
    {"prompt": "12", "response": "2020-01-01 10:00:00", "topic": "", "licence": "MIT"},
    {"prompt": "two\nlines", "response": 'a "quoted", word — ü', "topic": "art", "licence": "NA"},
]
MAPPED = ColumnsSection(domain="topic", labels=("licence",))


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_csv(path, rows):
    import csv

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def write_saved(path, rows):
    datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return str(path)


def write_saved_splits(path, rows):
    whole = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"test": whole.select([0]), "train": whole}).save_to_disk(str(path))
    return str(path)


def write_folder(path, rows):
    path.mkdir()
    write_jsonl(path / "a.jsonl", rows[:1])
    write_jsonl(path / "b.jsonl", rows[1:])
    return str(path)


def write_folder_of_parquet(path, rows):
    path.mkdir()
    return str(Path(write_parquet(path / "part-0.parquet", rows)).parent)


FORMATS = [
    ("a.jsonl", write_jsonl),
    ("a.csv", write_csv),
    ("a.parquet", write_parquet),
    ("saved", write_saved),
    ("splits", write_saved_splits),
    ("folder", write_folder),
    ("parquets", write_folder_of_parquet),
]


@pytest.fixture
def no_network(monkeypatch):
    """Any connection is a failure."""

    def refuse(*_args, **_kwargs):
        pytest.fail("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(("name", "write"), FORMATS, ids=[name for name, _ in FORMATS])
@pytest.mark.usefixtures("no_network")
def test_every_format_gives_the_same_samples(tmp_path, name, write):
    """Equivalence: JSONL, CSV, Parquet and folders hold the same texts, ids, labels, offline."""
    samples = open_samples(write(tmp_path / name, ROWS), MAPPED, domain="silo")
    assert [(s.prompt, s.response) for s in samples] == [(r["prompt"], r["response"]) for r in ROWS]
    assert samples.domains == ("law", "silo", "art") == tuple(s.domain for s in samples)
    assert [s.labels for s in samples] == [{"licence": r["licence"]} for r in ROWS]
    assert list(samples) == [samples[i] for i in range(3)]
    expected = tuple(content_id((), row["prompt"], row["response"]) for row in ROWS)
    assert samples.ids == expected == tuple(s.id for s in samples)
    assert columns_of(samples.source) == ("prompt", "response", "topic", "licence")


CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "and now?"},
    {"role": "assistant", "content": "bye"},
    {"role": "user", "content": "wait"},
]


@pytest.mark.parametrize(
    ("name", "write"), [("c.jsonl", write_jsonl), ("c.parquet", write_parquet)]
)
def test_chat_ends_with_the_last_assistant_turn(tmp_path, name, write):
    """Law: last assistant turn = response, last user turn before it = prompt, rest = history."""
    source = write(tmp_path / name, [{"messages": CHAT}])
    (sample,) = open_samples(source, ColumnsSection(messages="messages"))
    assert (sample.prompt, sample.response) == ("and now?", "bye")
    assert sample.history == tuple(Turn(**turn) for turn in CHAT[:3])
    assert sample.id == content_id(sample.history, "and now?", "bye")


text = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@given(st.lists(st.tuples(text, text), max_size=3), text, text)
def test_content_id_is_a_function_of_the_content(history, prompt, response):
    """Algebra: equal content, equal id of 32 hex digits; moving a text makes another id."""
    found = content_id(history, prompt, response)
    assert found == content_id(tuple(map(tuple, history)), prompt, response)
    assert len(found) == 32
    assert int(found, 16) >= 0
    assert found != content_id(history, prompt + "x", response)
    assert found != content_id([*history, ("user", "")], prompt, response)
    if prompt != response:
        assert found != content_id(history, response, prompt)


def test_content_id_does_not_move():
    """Oracle: SHA-256 of the JSON text, taken with sha256sum."""
    # printf '[[], "a", "b"]' | sha256sum
    assert content_id((), "a", "b") == "619a7be5613d2442dc73a2ed770f9315"


@settings(max_examples=20)
@given(st.lists(st.tuples(text, text), min_size=1, max_size=8))
def test_jsonl_texts_come_back_exactly(pairs):
    """Algebra: whatever the text, reading the file gives it back, with its id."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"prompt": prompt, "response": response} for prompt, response in pairs]
        samples = open_samples(write_jsonl(Path(folder) / "x.jsonl", rows), PLAIN)
        assert [(s.prompt, s.response) for s in samples] == pairs
        assert [content_id((), p, r) for p, r in pairs] == list(samples.ids)


def test_subset_reads_the_same_samples(tmp_path):
    """Equivalence: a subset, a slice and a subset of a subset give the samples of their rows."""
    rows = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(9)]
    samples = open_samples(write_jsonl(tmp_path / "x.jsonl", rows), PLAIN)
    some = samples.subset([7, 2, 4])
    assert [s.prompt for s in some] == ["p7", "p2", "p4"]
    assert [s.prompt for s in some.subset([2, 0])] == ["p4", "p7"]
    assert [s.prompt for s in samples[1:7:3]] == ["p1", "p4"]
    assert samples[-1].prompt == "p8"
    assert some.ids[0] == samples.ids[7] == some[0].id
    assert len(samples.subset([])) == 0 == len(list(samples.subset([])))
    with pytest.raises(IndexError):
        samples[9]


def test_samples_outlive_their_parent(tmp_path):
    """Law: the temporary copy stays while a subset lives, and goes with the last of them."""
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
        (tmp_path / "scratch").mkdir()
        samples = open_samples(write_jsonl(tmp_path / "x.jsonl", ROWS), PLAIN)
        part = samples.subset([1])
        del samples
        gc.collect()
        assert part[0].prompt == "12"
        assert len(list((tmp_path / "scratch").iterdir())) == 1
        del part
        gc.collect()
        assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(("name", "write"), FORMATS[:3], ids=[name for name, _ in FORMATS[:3]])
def test_bad_file_leaves_no_copy(tmp_path, monkeypatch, name, write):
    """Edge: nothing half-written stays behind after an error, nor after a look at the columns."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    source = write(tmp_path / name, ROWS)
    assert len(columns_of(source)) == 4
    with pytest.raises(DataError) as caught:
        open_samples(source, ColumnsSection(prompt="question"))
    assert "question" in str(caught.value)
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(("name", "write"), FORMATS[:3], ids=[name for name, _ in FORMATS[:3]])
def test_changed_file_is_read_anew(tmp_path, name, write):
    """Law: a file edited under the same name gives its new texts, and a new hash."""
    first = open_samples(write(tmp_path / name, ROWS), PLAIN)
    second = open_samples(write(tmp_path / name, [ROWS[0] | {"response": "A metal!"}]), PLAIN)
    assert [s.response for s in second] == ["A metal!"]
    assert first[0].response == "A metal."
    assert data_hash(first) != data_hash(second)


def test_data_hash_forgets_order_and_minds_content(tmp_path):
    """Law: the same samples in another order hash alike; another domain or text does not."""
    one = open_samples(write_jsonl(tmp_path / "a.jsonl", ROWS), MAPPED)
    two = open_samples(write_jsonl(tmp_path / "b.jsonl", ROWS[::-1]), MAPPED)
    assert data_hash(one) == data_hash(two)
    assert data_hash(one) != data_hash(open_samples(two.source, PLAIN))
    assert data_hash(one) != data_hash(one.subset([0, 1]))


def test_opening_holds_no_texts(tmp_path):
    """Memory: 8 MB of text leave less than 1.5 MB behind, and a pass over them as little."""
    source = tmp_path / "x.jsonl"
    with source.open("w", encoding="utf-8") as file:
        for i in range(2000):
            file.write(json.dumps({"prompt": f"{i} " + "p" * 1000, "response": "r" * 3000}) + "\n")
    open_samples(write_jsonl(tmp_path / "warm.jsonl", ROWS), PLAIN)  # imports and caches first
    gc.collect()
    tracemalloc.start()
    samples = open_samples(str(source), PLAIN)
    gc.collect()
    held, peak = tracemalloc.get_traced_memory()
    assert held < 1.5e6
    assert peak < 9e6  # one batch of 1000 rows of 4 kB, twice
    tracemalloc.reset_peak()
    assert sum(len(sample.response) for sample in samples) == 2000 * 3000
    gc.collect()
    assert tracemalloc.get_traced_memory()[0] < 1.5e6
    tracemalloc.stop()


def test_local_files_touch_no_shared_cache(tmp_path):
    """Law: in a fresh process no file appears under the home of ``datasets`` and none in HOME."""
    home = tmp_path / "home"
    home.mkdir()
    sources = [write(tmp_path / name, ROWS) for name, write in FORMATS]
    code = (
        "import sys; from fedwinnow.client.data.samples import open_samples;"
        "from fedwinnow.curation.config.run import ColumnsSection as C;"
        "[list(open_samples(s, C())) for s in sys.argv[1:]]"
    )
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    root = str(ROOT)
    subprocess.run(
        [sys.executable, "-c", code, *sources],
        env=environment | {"PYTHONPATH": root},
        check=True,
        cwd=tmp_path,
    )
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert list(tmp_path.glob("fw-arrow-*")) == []


def test_opening_leaves_the_settings_of_datasets(tmp_path, capfd):
    """Law: bars and log level of ``datasets`` are as before, and nothing is printed."""
    datasets.enable_progress_bars()
    level = datasets.logging.get_verbosity()
    open_samples(write_csv(tmp_path / "x.csv", ROWS), PLAIN)
    (tmp_path / "y.csv").write_text("prompt,response\na,b\nc,d,e\n", encoding="utf-8")
    with pytest.raises(DataError):
        open_samples(str(tmp_path / "y.csv"), PLAIN)
    assert not datasets.are_progress_bars_disabled()
    assert datasets.logging.get_verbosity() == level
    assert capfd.readouterr() == ("", "")


def raw(name, content):
    def write(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(folder / name)

    return write


GOOD = json.dumps({"prompt": "p", "response": "r"}) + "\n"
CHATS = ColumnsSection(messages="messages")


def chat(turns):
    return raw("c.jsonl", json.dumps({"messages": turns}))


BAD = {
    "missing file": (lambda folder: str(folder / "none.jsonl"), PLAIN, r"none\.jsonl.*no such"),
    "missing folder": (lambda folder: str(folder / "none"), PLAIN, "no such data file"),
    "no name": (lambda _: "", PLAIN, "no such data file"),
    "unknown ending": (raw("x.txt", "hello"), PLAIN, r"x\.txt: ending '\.txt' is unknown.*\.csv"),
    "empty file": (raw("x.jsonl", ""), PLAIN, r"x\.jsonl: the file is empty"),
    "empty Parquet file": (raw("x.parquet", ""), PLAIN, r"x\.parquet: the file is empty"),
    "blank lines": (raw("x.jsonl", "\n \n"), PLAIN, "holds no sample"),
    "header alone": (raw("x.csv", "prompt,response\n"), PLAIN, "holds no sample"),
    "broken JSON": (
        raw("x.jsonl", GOOD + "\n" + '{"prompt": '),
        PLAIN,
        r"x\.jsonl: line 3: broken",
    ),
    "no object": (
        raw("x.jsonl", GOOD + "[1]\n"),
        PLAIN,
        "line 2: expected a JSON object, got list",
    ),
    "no UTF-8": (raw("x.jsonl", GOOD.encode() + b"\xff\xfe\n"), PLAIN, "line 2: not UTF-8"),
    "deep JSON": (raw("x.jsonl", "[" * 100_000), PLAIN, r"x\.jsonl: line 1"),
    "missing column": (
        raw("x.jsonl", GOOD + '{"prompt": "p", "answer": "r"}\n'),
        PLAIN,
        r"x\.jsonl: line 2: column 'response' is missing; there are prompt, answer",
    ),
    "missing domain": (raw("x.jsonl", GOOD), MAPPED, "line 1: column 'topic' is missing"),
    "missing label": (
        raw("x.jsonl", GOOD),
        dataclasses.replace(MAPPED, domain=""),
        "line 1: column 'licence' is missing",
    ),
    "missing CSV column": (
        raw("x.csv", "question,answer\na,b\n"),
        PLAIN,
        r"x\.csv: line 2: column 'prompt' is missing; there are question, answer",
    ),
    "wrong type": (
        raw("x.jsonl", GOOD + '{"prompt": "p", "response": ["r"]}\n'),
        PLAIN,
        "line 2, response: expected a text, got list",
    ),
    "half a character": (
        raw("x.jsonl", '{"prompt": "\\ud800", "response": "r"}'),
        PLAIN,
        "Unicode",
    ),
    "ragged CSV": (
        raw("x.csv", "prompt,response\na,b\nc,d,e\n"),
        PLAIN,
        "line 3: expected 2 fields.*got 3",
    ),
    "no Parquet": (raw("x.parquet", "nonsense"), PLAIN, r"x\.parquet: cannot be read"),
    "no chat": (raw("c.jsonl", '{"messages": "hello"}'), CHATS, "line 1, messages: .*got str"),
    "broken turn": (chat([{"role": "user"}]), CHATS, "list of {role, content}"),
    "no assistant": (chat(CHAT[:2]), CHATS, "line 1, messages: the chat has no assistant turn"),
    "no user": (chat([CHAT[0], CHAT[2]]), CHATS, "no user turn stands before"),
    "empty chat": (chat([]), CHATS, "no assistant turn"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.usefixtures("no_network")
def test_bad_data_is_named(tmp_path, case):
    """Edge: one DataError that names file, line or row, what is there and what is not."""
    write, columns, match = BAD[case]
    with pytest.raises(DataError, match=match) as caught:
        open_samples(write(tmp_path), columns)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_wrong_type_in_parquet_names_the_row(tmp_path):
    """Edge: a table of numbers is refused at its first row, and the message tells no text."""
    source = write_parquet(tmp_path / "x.parquet", [{"prompt": "secret", "response": 3}])
    with pytest.raises(DataError, match="row 1, response: expected a text, got int") as caught:
        open_samples(source, PLAIN)
    assert "secret" not in str(caught.value)


def test_parquet_without_rows_is_named(tmp_path):
    """Edge: a Parquet file with columns and no row holds no sample."""
    schema = pa.schema([("prompt", pa.string()), ("response", pa.string())])
    pq.write_table(pa.Table.from_pylist([], schema=schema), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="holds no sample"):
        open_samples(str(tmp_path / "x.parquet"), PLAIN)


def test_broken_line_in_a_folder_names_its_file(tmp_path):
    """Edge: of many files the error names the one at fault, and the line."""
    folder = Path(write_folder(tmp_path / "many", ROWS))
    (folder / "b.jsonl").write_text(GOOD + "{", encoding="utf-8")
    with pytest.raises(DataError, match=r"b\.jsonl: line 2: broken JSON"):
        open_samples(str(folder), PLAIN)


def test_folder_of_two_kinds_is_refused(tmp_path):
    """Edge: JSONL beside CSV, or no data file at all, is named."""
    folder = Path(write_folder(tmp_path / "many", ROWS))
    write_csv(folder / "c.csv", ROWS)
    with pytest.raises(DataError, match=r"files of one kind.*found \.jsonl, \.csv"):
        open_samples(str(folder), PLAIN)
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="none of them"):
        open_samples(str(tmp_path / "bare"), PLAIN)


def test_saved_splits_without_train_are_named(tmp_path):
    """Edge: a saved set of splits without ``train`` lists those it has."""
    whole = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"test": whole}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="no split 'train', only test"):
        open_samples(str(tmp_path / "saved"), PLAIN)


def test_hub_name_goes_to_datasets_with_its_split(monkeypatch):
    """Law: ``owner/name:split`` is loaded from the hub under its own cache; train by default."""
    asked = []

    def load(name, **options):
        asked.append((name, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(open_samples("owner/name:test", PLAIN)) == 3
    assert len(open_samples("name", PLAIN)) == 3
    assert asked == [("owner/name", {"split": "test"}), ("name", {"split": "train"})]


def test_unreachable_hub_is_named(monkeypatch):
    """Edge: without network the message says that no such file is here either."""

    def load(*_args, **_options):
        message = "no route\nto the hub"
        raise ConnectionError(message)

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match=r"owner/name: .*no route.*no such file or folder either"):
        open_samples("owner/name", PLAIN)


def test_empty_cells_are_empty_texts(tmp_path):
    """Edge: null and an empty cell are empty texts, for measuring to give a status."""
    rows = [{"prompt": None, "response": "", "topic": None, "licence": 3}]
    (sample,) = open_samples(write_jsonl(tmp_path / "x.jsonl", rows), MAPPED, domain="silo")
    assert (sample.prompt, sample.response, sample.domain) == ("", "", "silo")
    assert sample.labels == {"licence": "3"}
    (csv,) = open_samples(
        raw("x.csv", "prompt,response,topic\np,,0\n")(tmp_path), ColumnsSection(domain="topic")
    )
    assert (csv.prompt, csv.response, csv.domain) == ("p", "", "0")


def test_byte_order_mark_and_windows_lines_are_read(tmp_path):
    """Edge: files saved by Windows programs read like others."""
    content = b"\xef\xbb\xbf" + GOOD.strip().encode() + b"\r\n"
    assert [s.prompt for s in open_samples(raw("x.jsonl", content)(tmp_path), PLAIN)] == ["p"]
    table = b"\xef\xbb\xbfprompt,response\r\np,r\r\n"
    assert [s.prompt for s in open_samples(raw("x.csv", table)(tmp_path), PLAIN)] == ["p"]


def test_full_disk_is_named(tmp_path, monkeypatch):
    """Edge: where the temporary copy cannot be written, the message says what to free."""

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    source = write_jsonl(tmp_path / "x.jsonl", ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(data_module.pa, "OSFile", full)
        with pytest.raises(OutputError, match=r"No space left.*TMPDIR"):
            open_samples(source, PLAIN)
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OutputError, match="TMPDIR"):
        open_samples(source, PLAIN)


def test_long_file_is_read_over_its_batches(tmp_path):
    """Equivalence: rows beyond one batch keep their order, ids and shuffled access."""
    rows = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(2503)]
    samples = open_samples(write_parquet(tmp_path / "x.parquet", rows), PLAIN)
    assert [s.prompt for s in samples] == [row["prompt"] for row in rows]
    order = range(2502, 0, -53)
    assert [samples[i].prompt for i in order] == [f"p{i}" for i in order]
    assert samples.rows[-1] == 2502
