"""The command line, run in the process of the test."""

import sys

import pytest

from fedwinnow.cli import main


@pytest.fixture
def fedwinnow(monkeypatch, capsys):
    """Runs a command line in this process: (exit code, standard output, standard error)."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedwinnow", *map(str, words)])
        code = 0
        try:
            main.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run
