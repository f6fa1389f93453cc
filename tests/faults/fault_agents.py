"""A toy deployment over Unix sockets: coordinator and site agents are child processes."""

import logging
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from fault_box import ALL, LONGEST, SETTINGS, Box, lives, quiet
from fault_breaks import Break, install
from fault_proxy import Proxy
from toy_deployment_files import write_toy_deployment

from fedwinnow.cli.site import serve
from fedwinnow.client.agent.relay import agent_status
from fedwinnow.client.budget import ledger
from fedwinnow.curation.config.coordinator import DeadlinesSection, QuorumSection
from fedwinnow.curation.config.identity import run_id
from fedwinnow.curation.config.load_files import load_run, load_site
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.site import SiteConfig
from fedwinnow.curation.config.strict_toml import to_toml
from fedwinnow.curation.errors import CurationError, TransportError
from fedwinnow.server.run.driver import drive
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.transport.coordinator_envelopes import CoordinatorEnvelopes
from fedwinnow.simulations.datasets.toy_federation import SITES
from fedwinnow.simulations.runtimes.sockets import AgentAddress, SocketTransport

READY = 180.0
"""Longest wait for an agent to listen, seconds."""


def agent(file: Path, broken: Break | None, log: Path) -> None:
    """One life of an agent, as ``fedwinnow site serve`` runs it."""
    quiet(log)
    if broken is not None:
        install(broken, SocketTransport)
    serve(file)


def attempt(
    config: RunConfig, broken: Break | None, log: Path, addresses: dict[str, AgentAddress]
) -> None:
    """One life of a coordinator that reaches its sites over sockets."""
    quiet(log)
    if broken is not None:
        install(broken, SocketTransport)
        if broken.what == "cut":
            address = addresses[broken.site]
            proxy = Proxy(behind=address.socket, broken=broken)
            addresses = addresses | {broken.site: replace(address, socket=proxy.socket)}
    try:
        store = RunFolder.open(config, resume=True)
        envelopes = CoordinatorEnvelopes.open(config, store.folder)
        transport = SocketTransport(envelopes=envelopes, addresses=addresses)
        drive(store.begin(config, run_id(config)), transport, store=store)
    except CurationError as error:
        logging.getLogger(__name__).exception("the run ended")
        sys.exit(error.exit_code)


@dataclass(slots=True, kw_only=True)
class Deployment:
    """Keys, data, model and configurations; written once, run often."""

    folder: Path
    run: RunConfig
    sites: dict[str, SiteConfig]

    @classmethod
    def write(cls, samples: int = 8) -> "Deployment":
        """A toy deployment in a folder whose path is short enough for sockets."""
        folder = Path(tempfile.mkdtemp(prefix="fw-", dir="/tmp"))
        run = load_run(write_toy_deployment(folder, samples=samples), SETTINGS)
        sites = {site: load_site(folder / site / "site.toml") for site in SITES}
        return cls(folder=folder, run=run, sites=sites)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(slots=True, kw_only=True)
class SocketBox:
    """One run of a deployment, with work folders and sockets of its own."""

    context: object
    folder: Path
    box: Box
    files: dict[str, Path]
    addresses: dict[str, AgentAddress]
    broken: Break | None = None
    running: dict = field(default_factory=dict)

    @classmethod
    def of(
        cls, deployment, context, *, quorum: QuorumSection = ALL, wait: float = 60.0
    ) -> "SocketBox":
        """A run in a new folder; ``wait`` is the deadline of every phase, seconds."""
        folder = Path(tempfile.mkdtemp(prefix="c-", dir=deployment.folder))
        files, addresses = {}, {}
        for site, config in deployment.sites.items():
            own = folder / site
            own.mkdir()
            addresses[site] = AgentAddress(
                socket=str(own / "s" / "agent"), token=str(own / "s" / "token")
            )
            placed = replace(
                config.agent, socket=addresses[site].socket, token=addresses[site].token
            )
            files[site] = own / "site.toml"
            text = to_toml(replace(config, agent=placed, work=str(own / "work")))
            files[site].write_text(text, encoding="utf-8")
        names = DeadlinesSection.__slots__
        run = replace(deployment.run, deadlines=DeadlinesSection(**dict.fromkeys(names, wait)))
        box = Box.of(run, folder, quorum=quorum)
        return cls(context=context, folder=folder, box=box, files=files, addresses=addresses)

    def live(self, broken: Break | None = None) -> list[int]:
        """Start agents, and coordinators until one comes to the end; their exit codes."""
        self.broken, codes, most = broken, [], lives(broken)
        while len(codes) < most and (not codes or codes[-1] != 0):
            self.ready()
            arguments = (self.box.config, broken, self.box.log, self.addresses)
            child = self.context.Process(target=attempt, args=arguments)
            child.start()
            end = time.monotonic() + LONGEST
            while child.is_alive() and time.monotonic() < end:
                self.revive()
                child.join(0.1)
            if child.is_alive():
                child.kill()
                child.join()
            codes.append(child.exitcode)
        if broken is not None:
            broken.story["retries"] = len(codes) - 1
        return codes

    def revive(self) -> None:
        """Start every agent that is not alive, as a service manager does."""
        for site, file in self.files.items():
            if site not in self.running or not self.running[site].is_alive():
                arguments = (file, self.broken, self.log(site))
                self.running[site] = self.context.Process(target=agent, args=arguments)
                self.running[site].start()

    def ready(self) -> None:
        """Wait until every agent answers."""
        end = time.monotonic() + READY
        for site, address in self.addresses.items():
            while True:
                self.revive()
                try:
                    agent_status(address.socket, address.token)
                    break
                except TransportError:
                    assert time.monotonic() < end, self.log(site).read_text()
                    time.sleep(0.05)

    def log(self, site: str) -> Path:
        """What the agents of a site said."""
        return self.folder / site / "agent.log"

    def told(self) -> str:
        """All logs, for a test that fails."""
        logs = [self.box.log, *map(self.log, self.files)]
        return "\n".join(f"== {log}\n{log.read_text()[-6000:]}" for log in logs if log.exists())

    def released(self) -> dict[str, list[tuple[str, str]]]:
        """Site → kind and request of each different message that left; the ledgers are whole."""
        found = {}
        for site in self.files:
            work = self.folder / site / "work"
            assert ledger.verify_chain(work) == []
            lines = [line for _, line in ledger.read_chain(work)]
            left = (x for x in lines if not x["kind"].startswith(("Refusal:", "Charge:")))
            kept = {(x["kind"], x["request"]) for x in left}
            found[site] = sorted(kept)
        return found

    def close(self) -> None:
        """Stop the agents that were started here."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        self.running.clear()
