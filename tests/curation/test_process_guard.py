"""Laws of the watchdog: what a process started and left goes with it, and nothing else does."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from repository import ROOT

from fedwinnow.curation import watchdog
from fedwinnow.curation.errors import OutputError
from fedwinnow.curation.process_guard import current_guard, remove_stale, scratch_folder

PARENT = """
import json, os, signal, socket, subprocess, sys, time
from pathlib import Path
from fedwinnow.curation.atomic_files import replace_atomically
from fedwinnow.curation.process_guard import (
    child_environment, remove_at_end, scratch_folder, undone_if_killed,
)

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
CHILD = (  # a grandchild in a session of its own, whose parent ends and whose environment is bare
    "import subprocess, sys, os, time;"
    "print(os.getpid(), subprocess.Popen([sys.executable, '-c', sys.argv[1]],"
    " start_new_session=True).pid, subprocess.Popen(['/usr/bin/env', '-i', 'sleep', '300']).pid,"
    " flush=True); time.sleep(300)"
)
here = Path(sys.argv[1])
child = subprocess.Popen(
    [sys.executable, "-c", CHILD, STUBBORN], env=child_environment(), stdout=subprocess.PIPE
)
ours = [int(word) for word in child.stdout.readline().split()]
foreign = subprocess.Popen(["sleep", "300"], stdout=subprocess.DEVNULL)
door = socket.socket(socket.AF_UNIX)
door.bind(str(here / "door"))
remove_at_end(here / "door")
def touch(name):
    return undone_if_killed(["touch", str(here / name)], {"PATH": "/usr/bin:/bin"})

with touch("spared"):
    pass
with touch("undone"), scratch_folder("texts") as folder, replace_atomically(here / "half") as half:
    (folder / "samples").write_text("private")
    half.write_text("half")
    told = {"ours": ours, "foreign": foreign.pid, "scratch": [str(folder), str(half)]}
    print(json.dumps(told), flush=True)
    time.sleep(300)
"""


@contextlib.contextmanager
def a_parent(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", dict]]:
    """A process with children and scratch, and what it told of them."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    told = json.loads(process.stdout.readline())
    try:
        yield process, told
    finally:
        process.kill()
        process.communicate()
        with contextlib.suppress(ProcessLookupError):
            os.kill(told["foreign"], signal.SIGKILL)


def gone(pids, longest: float = 10.0) -> bool:
    """Whether none of the processes lives after at most ``longest`` seconds."""
    left = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return not psutil.wait_procs(left, timeout=longest)[1]


def dogs_of(process) -> list[psutil.Process]:
    """The watchdog of a process."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if watchdog.__file__ in child.cmdline()]


def test_what_a_process_started_goes_with_it(tmp_path):
    """Law: after SIGKILL, grandchildren of other sessions, sockets and scratch are gone.

    The command that undoes what was begun has run, unless its block had ended. One grandchild
    does not hear SIGTERM, one has lost the mark. What was started without the mark lives on.
    """
    with a_parent(tmp_path) as (process, told):
        [dog] = dogs_of(process)
        assert all(map(psutil.pid_exists, told["ours"]))
        process.kill()
        process.wait()
        assert gone([*told["ours"], dog.pid])
        assert [path for path in map(Path, told["scratch"]) if path.exists()] == []
        assert not (tmp_path / "door").exists()
        assert (tmp_path / "undone").exists()
        assert not (tmp_path / "spared").exists()
        assert psutil.Process(told["foreign"]).is_running()


def test_scratch_of_a_dead_process_and_its_dead_watchdog_is_found_later(tmp_path):
    """Law: the next process ends and removes what both left; a living owner's scratch stays."""
    with a_parent(tmp_path) as (process, told):
        [folder, _] = map(Path, told["scratch"])
        remove_stale(tmp_path)
        assert folder.exists()  # its owner lives
        assert psutil.pid_exists(told["ours"][0])
        [dog] = dogs_of(process)
        process.send_signal(signal.SIGSTOP)  # it must not start another watchdog
        dog.kill()
        process.kill()
        process.wait()
        assert folder.exists()
        remove_stale(tmp_path)
        assert not folder.exists()
        assert gone(told["ours"])


def test_a_killed_watchdog_is_replaced(tmp_path, monkeypatch):
    """Law: the next scratch folder is watched again, and the older ones with it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    guard = current_guard()
    with scratch_folder() as first:
        guard._process.kill()
        guard._process.wait()
        with scratch_folder() as second:
            assert guard._process.poll() is None
            assert {("add", str(first)), ("add", str(second))} <= guard._told.keys()
    assert not first.exists()
    assert not second.exists()
    assert not {("add", str(first)), ("add", str(second))} & guard._told.keys()


def test_a_forked_process_removes_nothing_of_its_parent(tmp_path):
    """Edge: a fork inherits folders and exit functions; they are its parent's."""
    code = (
        "import os, sys; from pathlib import Path;"
        "from fedwinnow.curation.process_guard import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    if os.fork() == 0: sys.exit()\n"
        "    os.wait(); print(folder.is_dir())\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
    assert list(tmp_path.iterdir()) == []


def test_a_recycled_process_id_is_not_hit():
    """Law: a signal goes to the process that was found, not to one that got its number since."""
    with subprocess.Popen(["sleep", "300"]) as other:
        found = psutil.Process(other.pid)
        found._ident = (other.pid, 1.0)  # as one that was started long before
        watchdog.send_signal(found, signal.SIGKILL)
        time.sleep(0.1)
        assert other.poll() is None
        watchdog.send_signal(psutil.Process(other.pid), signal.SIGKILL)
        assert other.wait(timeout=5) == -signal.SIGKILL


def test_a_socket_with_a_listener_stays(tmp_path):
    """Edge: a new agent may listen where the killed one did."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "door"))
        door.listen()
        watchdog.remove(tmp_path / "door")
        assert (tmp_path / "door").exists()
    watchdog.remove(tmp_path / "door")
    assert not (tmp_path / "door").exists()


def test_scratch_that_cannot_be_made_names_the_setting(tmp_path, monkeypatch):
    """Edge: a TMPDIR that is not there."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with (
        pytest.raises(OutputError, match=r"TMPDIR .*missing: .*name a writable one"),
        scratch_folder(),
    ):
        pytest.fail("it was made")
