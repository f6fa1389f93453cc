"""Show a run's progress: bars on a terminal, plain lines elsewhere, seconds against a budget."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fedwinnow.curation.protocol.messages import Request
from fedwinnow.curation.protocol.replies import Refusal
from fedwinnow.server.state import RunState
from fedwinnow.server.transport.interface import Delivery

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


@dataclass(slots=True)
class ProgressDisplay:
    """Display of a run's progress, given to the driver and to the process cache."""

    budget: Mapping[str, float] = field(default_factory=dict)
    """Phase → seconds that all its rounds together may take; others are not judged."""
    console: Console = field(default_factory=lambda: Console(stderr=True))
    spent: dict[str, float] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)
    _bar: Progress | None = None
    _task: TaskID | None = None

    def delivery(self, state: RunState, request: Request, delivery: Delivery) -> None:
        """Print that a site answered or is missing, and the seconds that it took."""
        now = time.monotonic()
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
            outcome = f"refused: {delivery.reply.reason}"
        self._stop()
        allowed = self.budget.get(phase)
        of = "" if allowed is None else f" ({self.spent[phase]:.0f} of {allowed:.0f} s)"
        self.console.print(
            f"{state.run}: {what}: {site} {outcome} in {lasted:.1f} s{of}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def work(self, what: str, done: int, total: int) -> None:
        """Show how far long work is: a bar on a terminal, nothing in a log file."""
        if not self.console.is_terminal:
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

    def over_budget(self) -> list[str]:
        """Return the phases that took longer than their budget, in words."""
        return [
            f"{phase} took {self.spent.get(phase, 0.0):.0f} s of {allowed:.0f} s"
            for phase, allowed in self.budget.items()
            if self.spent.get(phase, 0.0) > allowed
        ]

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._task = None, None


def terminal() -> bool:
    """Return whether standard output is a terminal."""
    return sys.stdout.isatty()
