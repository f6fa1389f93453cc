"""Data files on the command line: columns that are guessed alike, told, and kept rows unchanged."""

import csv
import json
import logging
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.site import SiteConfig
from fedwinnow.curation.config.strict_toml import load_toml
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario
from fedwinnow.simulations.single_silo import score_config


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A folder with a toy federation."""
    return write_toy_scenario(tmp_path_factory.mktemp("toy"), samples=6).parent


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def alpaca(toy, tmp_path) -> Path:
    """A folder with data and anchors of instruction, input and output, and an unread column."""
    for name in ("north", "anchors"):
        rows = [
            {"instruction": "Answer.", "input": row["prompt"], "output": row["response"], "id": i}
            for i, row in enumerate(rows_of(toy / f"{name}.jsonl"))
        ]
        text = "".join(f"{json.dumps(row)} \n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def score(fedwinnow, toy, folder, data, *more):
    return fedwinnow(
        "score",
        *(folder / data, "--anchors", folder / "anchors.jsonl", "--model", toy / "model"),
        *("--out", folder / "s.parquet", "--scorer", "perplexity", "--json", *more),
        *("--set", "threshold.name=keep_fraction", "--set", "threshold.settings.share=0.5"),
        *("--set", "anchors.copies=1", "--set", "summary.smallest_cell=1"),
    )


def test_cli_init_and_score_read_the_same_columns(alpaca, toy, fedwinnow, caplog):
    """Law: both join instruction and input, say so, and name the column that nobody reads."""
    template = "{instruction}\n\n{input}"
    words = ("--anchors", alpaca / "anchors.jsonl", "--model", toy / "model", "--out", alpaca)
    code, _, err = fedwinnow("init", alpaca / "north.jsonl", *words)
    assert code == 0, err
    scenario = load_toml(alpaca / "scenario.toml", RunConfig)
    site = load_toml(alpaca / "site.toml", SiteConfig)
    alone = score_config(alpaca / "north.jsonl", alpaca / "anchors.jsonl", "m")
    mapped = {scenario.sites[0].columns, site.site.columns, alone.sites[0].columns}
    mapped |= {scenario.anchors.columns, site.anchors.columns, alone.anchors.columns}
    (columns,) = mapped
    assert (columns.prompt_template, columns.response) == (template, "output")
    told = caplog.messages
    reads = f"6 rows; prompt from {template!r}, response from output"
    assert f"reads {alpaca / 'north.jsonl'}: {reads}" in told
    unread = "columns that are not read: id (6 rows); columns.prompt_template"
    assert any(unread in line for line in told)
    caplog.clear()
    code, _, err = score(fedwinnow, toy, alpaca, "north.jsonl", "--kept", alpaca / "k.jsonl")
    assert code == 0, err
    assert f"reads {alpaca / 'north.jsonl'}: {reads}" in caplog.messages
    assert sum(unread in record.message for record in caplog.records) == 1
    assert all(r.levelno == logging.WARNING for r in caplog.records if "not read" in r.message)
    kept = pq.read_table(alpaca / "s.parquet")["kept"].to_pylist()
    lines = (alpaca / "north.jsonl").read_text(encoding="utf-8").split("\n")
    expected = [line.strip() for line, keep in zip(lines, kept, strict=False) if keep]
    assert (alpaca / "k.jsonl").read_text(encoding="utf-8").split("\n")[:-1] == expected
    assert 0 < len(expected) < 6


def test_cli_score_names_columns_of_its_own(alpaca):
    """Law: named columns outrank the guess, for the anchors too; other settings leave it alone."""
    data, anchors = alpaca / "north.jsonl", alpaca / "anchors.jsonl"
    lone = ("sites.0.columns.prompt=input", "sites.0.columns.response=output")
    config = score_config(data, anchors, "m", overrides=lone)
    assert config.sites[0].columns == config.anchors.columns
    assert (config.anchors.columns.prompt, config.anchors.columns.prompt_template) == ("input", "")
    apart = (*lone, "anchors.columns.prompt=instruction", "anchors.columns.response=output")
    assert score_config(data, anchors, "m", overrides=apart).anchors.columns.prompt == "instruction"
    every = score_config(data, anchors, "m", overrides=("sites.0.columns.train_on=all",))
    assert every.sites[0].columns.prompt_template == "{instruction}\n\n{input}"


def test_cli_score_keeps_rows_of_each_format(alpaca, toy, fedwinnow, monkeypatch):
    """Law: kept rows of CSV and of Parquet come back in it with every column and type."""
    rows = rows_of(alpaca / "north.jsonl")
    table = pa.Table.from_pylist([{**row, "raw": b"\xff", "at": float("nan")} for row in rows])
    pq.write_table(table, alpaca / "n.parquet")
    with (alpaca / "n [1].csv").open("w", newline="", encoding="utf-8") as file:
        lines = [["", *rows[0]], *([i, *row.values()] for i, row in enumerate(rows))]
        csv.writer(file).writerows(lines)
    for data in ("n.parquet", "n [1].csv"):
        target = alpaca / f"k{Path(data).suffix}"
        code, _, err = score(fedwinnow, toy, alpaca, data, "--kept", target)
        assert code == 0, err
        kept = pq.read_table(alpaca / "s.parquet")["kept"].to_pylist()
        if target.suffix == ".parquet":
            expected = table.filter(pa.array(kept))
            found = pq.read_table(target)
            assert found.schema.equals(table.schema)
            assert repr(found.to_pylist()) == repr(expected.to_pylist())
        else:
            with target.open(newline="", encoding="utf-8") as file:
                found = list(csv.reader(file))
            chosen = [line for line, keep in zip(lines[1:], kept, strict=True) if keep]
            assert found == [[str(cell) for cell in line] for line in (lines[0], *chosen)]

    def computed(*_args, **_kwargs):
        pytest.fail("computed before the file for the kept rows was checked")

    monkeypatch.setattr("fedwinnow.simulations.single_silo.run_phases", computed)
    for target, said in (
        ("k.jsonl", f"{alpaca / 'n.parquet'}: row 1, raw: bytes has no form in JSON"),
        ("k.csv", "written unchanged as .parquet or .jsonl, not as '.csv'"),
    ):
        (alpaca / target).unlink(missing_ok=True)
        code, _, err = score(fedwinnow, toy, alpaca, "n.parquet", "--kept", alpaca / target)
        assert (code, said in err) == (2, True), err
        assert not (alpaca / target).exists()


def test_cli_reads_the_train_split_of_a_folder(alpaca, toy, fedwinnow, caplog):
    """Law: of a folder train is read, and the split beside it is told; no result goes in there."""
    folder = alpaca / "hub" / "data"
    folder.mkdir(parents=True)
    lines = (alpaca / "north.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for name, part in (("train-0", lines[:4]), ("train-1", lines[4:]), ("test-0", lines[:1])):
        (folder / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    (folder / "._train-0.jsonl").write_bytes(b"\0\5\x16\7")
    shutil.copy(alpaca / "anchors.jsonl", folder.parent / "anchors")
    code, out, err = score(fedwinnow, toy, alpaca, "hub")
    assert code == 0, err
    assert json.loads(out)["samples"] == 6
    where = alpaca / "hub"
    said = f"reads {where}: 6 rows of 2 files of split train (train-0.jsonl, train-1.jsonl); prompt"
    assert any(line.startswith(said) for line in caplog.messages)
    assert any("not read: test (1 file)" in line for line in caplog.messages)
    inside = folder / "k.jsonl"
    code, _, err = score(fedwinnow, toy, alpaca, "hub", "--kept", inside)
    assert (code, f"--kept {inside}: lies in the folder of the data" in err) == (2, True)
