"""Show a run's progress: bars on a terminal, plain lines elsewhere, seconds against a budget.

Where there is no terminal, no 30 seconds pass without a line that says what goes on, how fast, and
how much time is left.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fedwinnow.curation.protocol.messages import Request
from fedwinnow.curation.protocol.replies import Refusal
from fedwinnow.server.phases.limits import refusal_words
from fedwinnow.server.state import RunState
from fedwinnow.server.transport.interface import Delivery

PAUSE = 25.0
"""Silence in a log after which a line is due, seconds; looked at every tenth of it."""
WORDS: Mapping[str, str] = {
    "join": "sites join, load data and model",
    "probe": "measure with the untrained adapter",
    "warm_up": "warm up",
    "measure": "measure gradients",
    "score": "fit the scorer, send histograms",
    "cluster": "cluster loss trajectories",
    "select": "apply the threshold",
    "train": "train",
    "evaluate": "evaluate",
    "close": "close",
}


@dataclass(frozen=True, slots=True)
class _Work:
    """Work with a known number of units, and where its rate is counted from."""

    what: str
    done: int
    total: int
    began: float
    done_at_first: int

    def words(self, now: float) -> str:
        """Return what is done, how fast, and how much time is left."""
        counted, spent = self.done - self.done_at_first, now - self.began
        share = f"{self.what}: {self.done} of {self.total}"
        if counted <= 0 or spent <= 0:
            return f"{share}, {spent:.0f} s so far"
        rate = counted / spent
        left = duration((self.total - self.done) / rate)
        return f"{share}, {rate:.3g} a second, about {left} left"


@dataclass(slots=True)
class ProgressDisplay:
    """Display of a run's progress, given to the driver and to the process cache.

    Inside its block a line is printed whenever a log was silent for ``pause`` seconds.
    """

    doing: str = "loading"
    """What goes on, where no units are counted."""
    budget: Mapping[str, float] = field(default_factory=dict)
    """Phase → seconds that all its rounds together may take; others are not judged."""
    console: Console = field(default_factory=lambda: Console(stderr=True))
    pause: float = PAUSE
    clock: Callable[[], float] = time.monotonic
    spent: dict[str, float] = field(default_factory=dict)
    _began: float = 0.0
    _since: float = 0.0
    _said: float = 0.0
    _work: _Work | None = None
    _ended: threading.Event = field(default_factory=threading.Event)
    _bar: Progress | None = None
    _task: TaskID | None = None

    def __post_init__(self) -> None:
        """Begin to count the time."""
        self._began = self._since = self._said = self.clock()

    def __enter__(self) -> Self:
        """Begin to break the silence of a log."""
        if not self.console.is_terminal:
            threading.Thread(target=self._watch, name="progress", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Take the bar away and say no more."""
        self._ended.set()
        self._stop()

    def say(self, line: str) -> None:
        """Print a line about what goes on from now."""
        self.doing, self._since, self._work = line, self.clock(), None
        self._print(line)

    def delivery(self, state: RunState, request: Request, delivery: Delivery) -> None:
        """Print that a site answered or is missing, and the seconds that it took."""
        now = self.clock()
        phase = request.header.phase
        self.spent[phase] = self.spent.get(phase, 0.0) + now - self._began
        lasted, self._began = now - self._began, now
        what = WORDS.get(phase, phase)
        if request.header.arm:
            what = f"{what} {request.header.arm}, round {request.header.round}"
        site = delivery.site or "a site"
        outcome = "done"
        if delivery.reply is None:
            outcome = f"missing: {delivery.missing}"
        elif isinstance(delivery.reply, Refusal):
            outcome = refusal_words(delivery.reply)
        self._stop()
        allowed = self.budget.get(phase)
        of = "" if allowed is None else f" ({self.spent[phase]:.0f} of {allowed:.0f} s)"
        self._print(f"{state.run}: {what}: {site} {outcome} in {lasted:.1f} s{of}")
        self.doing, self._since = f"{state.run}: the next answer is awaited", now
        self._work = None

    def work(self, what: str, done: int, total: int) -> None:
        """Show how far long work is: a bar on a terminal, a line now and then in a log."""
        if not self.console.is_terminal:
            self._count(what, done, total)
            return
        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(what, total=total)
        if self._task is not None:
            self._bar.update(self._task, description=what, completed=done, total=total)
        if done >= total:
            self._stop()

    def break_silence(self) -> None:
        """Print what goes on, if the last line is ``pause`` seconds old."""
        now, work = self.clock(), self._work
        if now - self._said < self.pause:
            return
        so_far = f"{self.doing}, {duration(now - self._since)} so far"
        self._print(so_far if work is None else work.words(now))

    def over_budget(self) -> list[str]:
        """Return the phases that took longer than their budget, in words."""
        return [
            f"{phase} took {self.spent.get(phase, 0.0):.0f} s of {allowed:.0f} s"
            for phase, allowed in self.budget.items()
            if self.spent.get(phase, 0.0) > allowed
        ]

    def _count(self, what: str, done: int, total: int) -> None:
        now, before = self.clock(), self._work
        if done >= total:
            self._work, self._since, self.doing = None, now, f"{what}: done; what follows it"
        elif before is None or before.what != what or done < before.done:
            self._work = _Work(what, done, total, now, done)
        else:
            self._work = _Work(what, done, total, before.began, before.done_at_first)
        self.break_silence()

    def _watch(self) -> None:
        while not self._ended.wait(self.pause / 10):
            self.break_silence()

    def _print(self, line: str) -> None:
        self._said = self.clock()
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._task = None, None


def duration(seconds: float) -> str:
    """Return a time in words of one unit: seconds, minutes or hours."""
    if seconds < 120:  # noqa: PLR2004 - two minutes
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"  # noqa: PLR2004 - two hours
