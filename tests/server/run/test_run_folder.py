"""Laws of the run folder: committed or not there; another run's state is never touched."""

import errno
import json
import os
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from fake_federation import at, make_config, run_until

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import parse
from fedwinnow.curation.errors import ConfigError, OutputError
from fedwinnow.curation.protocol import wire
from fedwinnow.server.run.fold import initial_state
from fedwinnow.server.run.run_folder import RunFolder


def test_store_load_undoes_commit(tmp_path):
    """A committed state is read back bit for bit; before the first commit there is none."""
    store = RunFolder.open(make_config(tmp_path), resume=False)
    assert store.load() is None
    for phase in ("join", "measure", "train"):
        state = at(phase)
        store.commit(state)
        assert wire.dump(store.load()) == wire.dump(state)


def test_store_writes_the_resolved_configuration(tmp_path):
    """run.toml is the configuration itself."""
    config = make_config(tmp_path)
    store = RunFolder.open(config, resume=False)
    assert store.folder == tmp_path / "fake"
    text = (store.folder / "run.toml").read_text(encoding="utf-8")
    assert parse(tomllib.loads(text), RunConfig) == config


def test_store_metrics_have_a_line_for_every_exchange(tmp_path):
    """metrics.jsonl holds one JSON object per record, with losses where they were measured."""
    store = RunFolder.open(make_config(tmp_path), resume=False)
    state = at("close")
    store.commit(state)
    lines = (store.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["phase"] for row in rows] == [record.phase for record in state.records]
    assert all((row["eval_loss"] is not None) == (row["phase"] == "evaluate") for row in rows)
    weights = [sum(row["weights"].values()) for row in rows if row["phase"] == "train"]
    assert weights == pytest.approx([1.0] * len(weights))


def test_store_does_not_overwrite_a_run(tmp_path):
    """Without resume a folder that holds a state is an error that says how to go on."""
    config = make_config(tmp_path)
    store = RunFolder.open(config, resume=False)
    store.commit(at("train"))
    before = store.state_file.read_bytes()
    with pytest.raises(OutputError, match=r"phase train; resume it with --resume"):
        RunFolder.open(config, resume=False)
    assert store.state_file.read_bytes() == before


def test_store_resumes_the_same_configuration_only(tmp_path):
    """Resume with other settings is an error; with the same ones it goes on."""
    config = make_config(tmp_path)
    store = RunFolder.open(config, resume=False)
    store.commit(initial_state(config, "fake-run"))
    assert RunFolder.open(config, resume=True) == store
    other = replace(config, run=replace(config.run, seed=1))
    before = (store.folder / "run.toml").read_bytes()
    with pytest.raises(ConfigError, match="differs from the committed run's"):
        RunFolder.open(other, resume=True)
    assert (store.folder / "run.toml").read_bytes() == before


def test_store_state_that_is_not_whole_is_a_named_error(tmp_path):
    """A cut or foreign state, or one of another version, is refused with its path and a way on."""
    config = make_config(tmp_path)
    store = RunFolder.open(config, resume=False)
    store.commit(run_until(config, "score"))
    data = store.state_file.read_bytes()
    for bad in (b"", data[: len(data) // 2], wire.dump(config), b"junk" * 40):
        store.state_file.write_bytes(bad)
        with pytest.raises(OutputError, match=r"state\.safetensors: no state .* new run\.name"):
            RunFolder.open(config, resume=True)


def test_store_full_disk_keeps_the_last_state(tmp_path, monkeypatch):
    """A commit onto a full disk is an OutputError; the state before it stays whole."""
    store = RunFolder.open(make_config(tmp_path), resume=False)
    store.commit(at("score"))
    before = store.state_file.read_bytes()

    def full(self, data):
        with self.open("wb") as stream:
            stream.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        store.commit(at("train"))
    assert store.state_file.read_bytes() == before
    assert [path.name for path in store.state_file.parent.iterdir()] == ["state.safetensors"]


def test_store_unwritable_run_folder_is_a_named_error(tmp_path):
    """A run folder that cannot be made is an OutputError with its path."""
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/fake"):
        RunFolder.open(make_config(tmp_path / "file"), resume=False)


def test_store_state_that_cannot_be_read_is_a_named_error(tmp_path):
    """A folder in the state file's place is an OutputError with its path."""
    config = make_config(tmp_path)
    store = RunFolder.open(config, resume=False)
    store.state_file.mkdir(parents=True)
    with pytest.raises(OutputError, match=r"state\.safetensors: cannot be read"):
        store.load()
