"""Breaks that happen for real, in a child process: kill -9, a full disk, a lost message.

A break happens once, at a named point of one exchange, and leaves a marker file: a test can see
that it did happen, and whoever is started again goes on unharmed.
"""

import os
import pathlib
import resource
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedwinnow.client import site as client_site
from fedwinnow.client.boundary import Boundary
from fedwinnow.client.ledger import Ledger, file_of
from fedwinnow.client.shim import agent_status
from fedwinnow.client.site import Site
from fedwinnow.client.workshop import Workshop
from fedwinnow.curation.envelope import verified_stamp
from fedwinnow.server.driver import Delivery
from fedwinnow.server.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """One thing that goes wrong, once."""

    what: str
    """"kill", "full" (no file may grow) or "cut" (a message is lost)."""
    point: str
    """Where in the exchange."""
    phase: str
    round: int
    site: str = ""
    """Where it happens; "" at the coordinator."""
    marker: Path
    """Made when it happens."""

    def meets(self, header, site: str = "") -> bool:
        """Whether it is due in this exchange, here."""
        here = header is not None and (header.phase, header.round) == (self.phase, self.round)
        return here and site == self.site and not self.marker.exists()

    def happens(self) -> None:
        """Leave the marker, and die where death is asked for."""
        self.marker.touch(exist_ok=False)
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)


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
            broken.happens()
            if broken.what == "full":
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, -1))  # until this process ends
        theirs = broken.what == "cut" and broken.meets(request.header, broken.site)
        if broken.point == "gone" and broken.meets(request.header, broken.site):
            door = self.doors[broken.site]
            process = agent_status(door.socket, door.token)["process"]
            broken.marker.touch()
            os.kill(process, signal.SIGKILL)
        if theirs and broken.point == "request":
            broken.happens()
            sites = [name for name in sites or sorted(self.sites) if name != broken.site]
            yield Delivery(site=broken.site, reply=None, missing="connection lost")
        for delivery in exchange(self, request, sites, **rest):
            if theirs and broken.point == "reply" and delivery.site == broken.site:
                broken.happens()
                yield Delivery(site=broken.site, reply=None, missing="connection lost")
                continue
            yield delivery
            if ours and broken.point == "answered" and not broken.marker.exists():
                broken.happens()

    transport.exchange = breaking


def _install_files(broken) -> None:
    """Die between a file's last byte and its name; or let the commit find a full disk."""
    rename, commit = pathlib.Path.replace, Store.commit
    names = {"torn": "state.safetensors", "behind": "metrics.jsonl"}

    def renaming(self, target):
        at_commit = broken.meets(Now.exchange) and Path(target).name == names.get(broken.point)
        at_site = broken.point == "half" and Path(target).parent.name == "replies"
        if at_commit or (at_site and broken.meets(Now.request, Now.site)):
            broken.happens()
        return rename(self, target)

    def committing(self, state):
        if broken.point == "commit" and broken.meets(Now.exchange):
            broken.happens()
            with full_disk():
                return commit(self, state)
        return commit(self, state)

    pathlib.Path.replace = renaming
    Store.commit = committing


def _install_site(broken) -> None:
    handle = Site.answer

    def answering(self, request):
        Now.request, Now.site = request.header, self.name
        due = broken.meets(request.header, self.name)
        if due and broken.point == "arrives":
            broken.happens()
        if due and broken.point == "work" and broken.what == "full":
            broken.happens()
            with full_disk():
                return handle(self, request)
        reply = handle(self, request)
        if due and broken.point == "stored":
            broken.happens()
        Now.request = None
        return reply

    Site.answer = answering


def _install_work(broken) -> None:
    compute, watch = client_site.answer, Workshop.watch

    def computing(work, request):
        reply = compute(work, request)
        if broken.point == "computed" and broken.meets(request.header, work.site):
            broken.happens()
        return reply

    def watching(self, what):
        told = watch(self, what)

        def progress(done, total):
            if broken.point == "computing" and broken.meets(Now.request, Now.site):
                broken.happens()
            if told is not None:
                told(done, total)

        return progress

    client_site.answer, Workshop.watch = computing, watching


def _install_agent(broken) -> None:
    """Points that only an agent has: admission, and the ledger before anything leaves."""
    admit, append = Boundary.admit, Ledger.append

    def admitting(self, stamp, signature):
        if broken.point != "admit" or broken.marker.exists():
            return admit(self, stamp, signature)
        found = verified_stamp(stamp, signature, self.coordinator)
        if found.phase != broken.phase or self.site.name != broken.site:
            return admit(self, stamp, signature)
        broken.happens()
        with full_disk(0):
            return admit(self, stamp, signature)

    def entering(self, entry):
        due = broken.meets(entry, self.folder.parent.name)
        if due and broken.point == "ledger" and broken.what == "full":
            broken.happens()
            file = file_of(self.folder)
            with full_disk((file.stat().st_size if file.exists() else 0) + 50):
                return append(self, entry)
        head = append(self, entry)
        if due and broken.point == "entered":
            broken.happens()
        return head

    Boundary.admit, Ledger.append = admitting, entering
