"""Laws of the progress display: no log stays silent for long, and says rate and time left."""

import io
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
from repository import ROOT
from rich.console import Console

from fedwinnow.cli.progress import PAUSE, ProgressDisplay, duration


@dataclass
class Hands:
    """A clock that a test sets."""

    now: float = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def hands() -> Hands:
    """The clock of a display."""
    return Hands()


@pytest.fixture
def log(hands) -> ProgressDisplay:
    """A display whose lines go to a file."""
    return ProgressDisplay(console=Console(file=io.StringIO(), width=200), clock=hands)


def lines(display: ProgressDisplay) -> list[str]:
    """What was printed."""
    return display.console.file.getvalue().splitlines()


def test_long_work_says_rate_and_time_left(log, hands):
    """Law: one line whenever the last is ``PAUSE`` seconds old, however often units are told."""
    for second in range(101):
        hands.now = float(second)
        log.work("south trains", 2 * second, 400)
        log.break_silence()
    assert len(lines(log)) == 100 // PAUSE
    assert lines(log)[-1] == "south trains: 200 of 400, 2 a second, about 100 s left"
    hands.now += PAUSE
    log.work("south evaluates", 1, 10)  # the rate of other work is not counted
    assert lines(log)[-1] == "south evaluates: 1 of 10, 0 s so far"


def test_work_without_units_says_how_long_it_lasts(log, hands):
    """Edge: loading a model tells no units; finished work is not told again."""
    hands.now = 40.0
    log.break_silence()
    assert lines(log) == ["loading, 40 s so far"]
    log.break_silence()
    log.work("south measures", 5, 5)
    hands.now = 80.0
    log.break_silence()
    assert lines(log)[1:] == ["south measures: done; what follows it, 40 s so far"]


def test_a_silent_block_is_broken_by_a_thread():
    """Law: the line comes while the work itself tells nothing, and none comes after the block."""
    file = io.StringIO()
    with ProgressDisplay(console=Console(file=file), pause=0.01, doing="merge") as log:
        ended = log._ended
        while "merge" not in file.getvalue():
            ended.wait(0.01)
    assert ended.is_set()


def test_a_terminal_shows_bars_and_no_lines(hands):
    """Equivalence: on a terminal the bar tells the same, and no thread is started."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with ProgressDisplay(console=console, clock=hands, pause=0.0) as shown:
        shown.work("south trains", 1, 4)
        assert shown._work is None
        shown.work("south trains", 4, 4)
    assert "south trains" in console.file.getvalue()
    assert "a second" not in console.file.getvalue()


@pytest.mark.parametrize(("seconds", "words"), [(119.4, "119 s"), (120, "2 min"), (7200, "2.0 h")])
def test_durations_have_one_unit(seconds, words):
    """Edge: at the borders."""
    assert duration(seconds) == words


def test_bars_of_other_libraries_stay_out_of_a_log():
    """Law: without a terminal tqdm prints nothing; what a user has set stays."""
    code = (
        "from fedwinnow.cli.main import offline; offline();"
        "from tqdm.auto import tqdm; list(tqdm(range(3), desc='Loading weights'))"
    )
    plain = {key: value for key, value in os.environ.items() if key != "TQDM_DISABLE"}
    for given, shown in ({}, False), ({"TQDM_DISABLE": ""}, True):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**plain, **given, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert ("Loading weights" in done.stderr) == shown
