"""The report in a real browser: the charts are there, the console is silent."""

import re
import shutil
import subprocess

import pytest
from report_record import make_record

from fedwinnow.server.report.page import write_report

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--v=0", "--window-size=1000,4000",
)  # fmt: skip


@pytest.mark.flower  # long
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian package chromium)")
def test_report_opens_in_a_browser_without_console_errors(tmp_path):
    """Charts reach the DOM with a size, and nothing is written to the console."""
    page = tmp_path / "report.html"
    write_report(make_record(), page)
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.count("<svg") == 7
    assert "Scorers against the planted truth" in done.stdout
    assert not re.findall(r"CONSOLE.*", done.stderr)
    shot = tmp_path / "report.png"
    subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'two'}", f"--screenshot={shot}",
         page.as_uri()],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    assert shot.stat().st_size > 50_000  # an empty page is a few kilobytes
