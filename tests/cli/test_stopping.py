"""Laws of signals: a command clears up, says what it saved, and ends with 128 + the number."""

import os
import signal
import subprocess
import sys
import time

import pytest
from repository import ROOT

from fedwinnow.cli import stopping
from fedwinnow.cli.stopping import StoppedError, listened, resumed_by, saying, stopping_on_signals
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario


def test_a_stopped_simulation_says_how_to_go_on(tmp_path):
    """Law: SIGTERM ends it with 143, its scratch is gone, and it names the next command."""
    toy = write_toy_scenario(tmp_path / "toy", samples=6)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "scratch")}
    (tmp_path / "scratch").mkdir()
    words = [sys.executable, "-m", "fedwinnow.cli.main", "simulate", str(toy)]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if "measure" in line:
                break
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
        assert process.wait(timeout=10) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.communicate()
    folder = tmp_path / "toy" / "runs" / "toy"
    assert f"stopped by SIGTERM; what was committed is kept in {folder}" in said
    assert said.rstrip().endswith(f"simulate {toy} --resume")
    assert list((tmp_path / "scratch").iterdir()) == []
    assert (folder / "state").is_dir()


def test_a_signal_is_raised_once_and_handlers_come_back():
    """Law: inside the block it is an exception with the code; a second one breaks nothing."""
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with (
        pytest.raises(StoppedError) as stopped,
        saying("outer"),
        saying("kept"),
        stopping_on_signals(),
    ):
        signal.set_wakeup_fd(-1)  # this process is to live on
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
    assert (stopped.value.code, stopped.value.signal) == (129, "SIGHUP")
    assert stopped.value.saved == "kept"  # the innermost knows best
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before


def test_a_signal_waits_for_the_import_of_an_extension():
    """Law: an exception never runs into C++ that imports; the signal is heard after it."""
    heard = []

    class ExtensionFileLoader:
        def create_module(self):
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
            heard.append("imported")

    with pytest.raises(StoppedError) as stopped, stopping_on_signals():
        signal.set_wakeup_fd(-1)  # this process is to live on
        loader = ExtensionFileLoader()
        qualified = type(loader).create_module.__code__.replace(
            co_qualname="ExtensionFileLoader.create_module"
        )
        type(loader).create_module.__code__ = qualified
        loader.create_module()
        time.sleep(5)
    assert (stopped.value.signal, heard) == ("SIGHUP", ["imported"])


def test_an_ignored_signal_stays_ignored(monkeypatch):
    """Edge: ``nohup`` starts a command with SIGHUP ignored."""
    monkeypatch.setattr(
        stopping.signal,
        "getsignal",
        lambda number: signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL,
    )
    assert listened() == [signal.SIGINT, signal.SIGTERM]


def test_a_computation_that_hears_nothing_is_ended():
    """Law: where the main thread is in C for long, the process ends with the code all the same."""
    code = (
        "import hashlib; from fedwinnow.cli import stopping; stopping.LONGEST = 0.2\n"
        "with stopping.stopping_on_signals():\n"
        "    print('computes', flush=True); hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 128 + signal.SIGINT
        assert "in the middle of a computation" in process.stderr.read()


@pytest.mark.parametrize("typed", ["fedwinnow run a.toml", "fedwinnow run a.toml --resume"])
def test_the_words_name_resume_once(monkeypatch, typed):
    """Edge: a command that resumes is named as it is."""
    monkeypatch.setattr(sys, "argv", typed.split())
    assert resumed_by("runs/a").endswith("go on with: fedwinnow run a.toml --resume")
