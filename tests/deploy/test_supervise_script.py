"""Laws of ``docs/deploy/scripts/supervise``: what it started ends with it, whatever ends it."""

import os
import shutil
import signal
import subprocess
import uuid

import psutil
import pytest
from repository import ROOT

from fedwinnow.curation.watchdog import end_marked, marked

SCRIPT = ROOT / "docs" / "deploy" / "scripts" / "supervise"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (util-linux)")
def test_the_supervised_command_ends_with_the_script(number):
    """Law: also after SIGKILL, of which a shell hears nothing."""
    name, value = "FEDWINNOW_TEST_MARK", uuid.uuid4().hex
    with subprocess.Popen([SCRIPT, "sleep", "300"], env={**os.environ, name: value}) as script:
        try:
            while not (
                found := [one for one in marked(f"{name}={value}") if one.name() == "sleep"]
            ):
                pass
            script.send_signal(number)
            assert psutil.wait_procs(found, timeout=5)[1] == []
            script.wait(timeout=5)
        finally:
            end_marked(f"{name}={value}", grace=0.0)
