"""Laws of writing: whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from fedwinnow.curation.atomic_files import replace_atomically, write_atomically, write_json
from fedwinnow.curation.errors import OutputError


def entries(folder):
    """Names in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


def half_write(file, error):
    """Be stopped by ``error`` in the middle of writing."""
    with replace_atomically(file) as temporary:
        temporary.write_bytes(b"half")
        raise error


def test_files_write_makes_folders_and_replaces(tmp_path):
    """Missing folders are made; a second write replaces the first; nothing else remains."""
    file = tmp_path / "a" / "b" / "c.bin"
    write_atomically(file, b"one")
    write_atomically(file, b"two")
    assert file.read_bytes() == b"two"
    assert entries(file.parent) == ["c.bin"]


def test_files_interrupted_write_leaves_the_old_file(tmp_path):
    """Whatever stops the block: the old content stays, and no temporary file does."""
    file = tmp_path / "c.bin"
    write_atomically(file, b"old")
    with pytest.raises(KeyboardInterrupt):
        half_write(file, KeyboardInterrupt)
    assert file.read_bytes() == b"old"
    assert entries(tmp_path) == ["c.bin"]


def test_files_interrupted_first_write_leaves_nothing(tmp_path):
    """A file that was never whole is never there."""
    with pytest.raises(ZeroDivisionError):
        half_write(tmp_path / "c.bin", ZeroDivisionError)
    assert entries(tmp_path) == []


def test_files_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    """A full disk is an OutputError with its path; the old file stays, nothing half-written."""
    file = tmp_path / "c.bin"
    write_atomically(file, b"old")

    def full(self, data):
        with self.open("wb") as stream:
            stream.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"c\.bin: cannot be written \(No space left on device\)"):
        write_atomically(file, b"new content")
    assert file.read_bytes() == b"old"
    assert entries(tmp_path) == ["c.bin"]


def test_files_disk_that_fills_up_at_the_flush_keeps_the_old_file(tmp_path, monkeypatch):
    """An error that only fsync reports is as good as any other: the rename does not happen."""
    file = tmp_path / "c.bin"
    write_atomically(file, b"old")

    def fails(_descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OutputError, match=r"c\.bin"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert entries(tmp_path) == ["c.bin"]


def test_files_unwritable_folder_is_one_clear_error(tmp_path):
    """A path below a file can hold nothing: an OutputError with the path."""
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "deeper" / "c.bin", b"x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomically(tmp_path, b"x")  # a folder
    assert entries(tmp_path) == ["file"]


def test_files_json_is_strict(tmp_path):
    """A NaN is an error before anything is written; texts stay readable."""
    file = tmp_path / "r.json"
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"x": float("nan")})
    assert entries(tmp_path) == []
    write_json(file, {"x": "θ"})
    assert "θ" in file.read_text(encoding="utf-8")
