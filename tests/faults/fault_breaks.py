"""Breaks that happen for real, in a child process: kill -9, a full disk, a lost message.

A break happens at a named point of each of its exchanges, once, and leaves a mark there: a test can
see that it did happen, and whoever is started again goes on unharmed, to the next one.
"""

import os
import pathlib
import resource
import signal
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fedwinnow.client import site as client_site
from fedwinnow.client.agent.relay import agent_status
from fedwinnow.client.boundary.guarded_site import GuardedSite
from fedwinnow.client.budget.ledger import Ledger
from fedwinnow.client.budget.ledger_chain import file_of
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.client.site import Site
from fedwinnow.curation.protocol.envelope import verify_stamp
from fedwinnow.curation.protocol.header import Header
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.transport.interface import Delivery


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """One thing that goes wrong, once in each exchange that it is told of."""

    what: str
    """"kill", "full" (no file may grow) or "cut" (a message is lost)."""
    point: str
    """Where in the exchange."""
    at: tuple[tuple[str, int], ...]
    """Phase and round of its exchanges."""
    site: str = ""
    """Where it happens; "" at the coordinator."""
    marks: Path
    """Folder that holds a file for each time that it happened."""
    story: dict = field(default_factory=dict)
    """What a test tells of it, for the evidence."""

    def meets(self, header, site: str = "") -> bool:
        """Whether it is due in this exchange, here."""
        if header is None or site != self.site or (header.phase, header.round) not in self.at:
            return False
        return not self._mark(header).exists()

    def happens(self, header, victim: int = 0) -> None:
        """Leave the mark, and kill where a kill is asked for: this process, or another."""
        self.marks.mkdir(parents=True, exist_ok=True)
        self._mark(header).touch(exist_ok=False)
        if self.what == "kill":
            os.kill(victim or os.getpid(), signal.SIGKILL)

    def spared(self) -> set[str]:
        """The exchanges in which it has not happened."""
        happened = {file.name for file in self.marks.iterdir()} if self.marks.exists() else set()
        return {f"{phase}-{number}" for phase, number in self.at} - happened

    def _mark(self, header) -> Path:
        return self.marks / f"{header.phase}-{header.round}"


@contextmanager
def full_disk(size: int = 100):
    """No file may grow beyond ``size`` bytes: the kernel refuses the rest of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Now:
    """What this process is at: the exchange, and the request that a site of it computes."""

    exchange = None
    request = None
    site = ""


def install(broken: Break, transport: type) -> None:
    """Make this process break."""
    _install_exchange(broken, transport)
    _install_files(broken)
    _install_site(broken)
    _install_work(broken)
    _install_agent(broken)


def _install_exchange(broken, transport) -> None:
    exchange = transport.exchange

    def breaking(self, request, sites, **rest):
        Now.exchange = request.header
        ours = broken.meets(request.header)
        if ours and broken.point == "asked":
            broken.happens(request.header)
            if broken.what == "full":
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, -1))  # until this process ends
        theirs = broken.what == "cut" and broken.meets(request.header, broken.site)
        if broken.point == "gone" and broken.meets(request.header, broken.site):
            address = self.addresses[broken.site]
            broken.happens(request.header, agent_status(address.socket, address.token)["process"])
        if theirs and broken.point == "request":
            broken.happens(request.header)
            sites = [name for name in sites or sorted(self.sites) if name != broken.site]
            yield Delivery(site=broken.site, reply=None, missing="connection lost")
        for delivery in exchange(self, request, sites, **rest):
            if (
                theirs
                and broken.point == "reply"
                and (delivery.site, delivery.request) == (broken.site, None)
            ):
                broken.happens(request.header)
                yield Delivery(site=broken.site, reply=None, missing="connection lost")
                continue
            yield delivery
            if broken.point == "answered" and broken.meets(request.header):
                broken.happens(request.header)

    transport.exchange = breaking


def _install_files(broken) -> None:
    """Die between a file's last byte and its name; or let the commit find a full disk."""
    rename, commit = pathlib.Path.replace, RunFolder.commit
    names = {"torn": "state.safetensors", "behind": "metrics.jsonl"}

    def renaming(self, target):
        if Path(target).name == names.get(broken.point) and broken.meets(Now.exchange):
            broken.happens(Now.exchange)
        at_site = broken.point == "half" and Path(target).parent.name == "replies"
        if at_site and broken.meets(Now.request, Now.site):
            broken.happens(Now.request)
        return rename(self, target)

    def committing(self, state):
        if broken.point == "commit" and broken.meets(Now.exchange):
            broken.happens(Now.exchange)
            with full_disk():
                return commit(self, state)
        return commit(self, state)

    pathlib.Path.replace = renaming
    RunFolder.commit = committing


def _install_site(broken) -> None:
    handle = Site.answer

    def answering(self, request, run=None):
        Now.request, Now.site = request.header, self.name
        due = broken.meets(request.header, self.name)
        if due and broken.point == "arrives":
            broken.happens(request.header)
        if due and broken.point == "work" and broken.what == "full":
            broken.happens(request.header)
            with full_disk():
                return handle(self, request, run)
        reply = handle(self, request, run)
        if due and broken.point == "stored":
            broken.happens(request.header)
        Now.request = None
        return reply

    Site.answer = answering


def _install_work(broken) -> None:
    compute, on_progress = client_site.answer, ProcessCache.on_progress

    def computing(work, request):
        reply = compute(work, request)
        if broken.point == "computed" and broken.meets(request.header, work.site):
            broken.happens(request.header)
        return reply

    def watching(self, what):
        told = on_progress(self, what)

        def progress(done, total):
            if broken.point == "computing" and broken.meets(Now.request, Now.site):
                broken.happens(Now.request)
            if told is not None:
                told(done, total)

        return progress

    client_site.answer, ProcessCache.on_progress = computing, watching


def _install_agent(broken) -> None:
    """Points that only an agent has: admission, and the ledger before anything leaves."""
    admit, append = GuardedSite.admit, Ledger.append

    def admitting(self, stamp, signature):
        found = verify_stamp(stamp, signature, self.coordinator)
        due = [key for key in broken.at if key[0] == found.phase]  # a stamp tells no round
        header = Header(run=found.run, phase=found.phase, round=due[0][1] if due else 0)
        if broken.point == "admit" and broken.meets(header, self.site.name):
            broken.happens(header)
            with full_disk(0):
                return admit(self, stamp, signature)
        return admit(self, stamp, signature)

    def entering(self, entry):
        charge = entry.kind.startswith("Charge:")
        due = not charge and broken.meets(entry, self.folder.parent.name)
        if due and broken.point == "ledger" and broken.what == "full":
            broken.happens(entry)
            file = file_of(self.folder)
            with full_disk((file.stat().st_size if file.exists() else 0) + 50):
                return append(self, entry)
        head = append(self, entry)
        if due and broken.point == "entered":
            broken.happens(entry)
        return head

    GuardedSite.admit, Ledger.append = admitting, entering
