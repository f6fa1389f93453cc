"""Rehearse ``docs/deploy`` on this machine: a coordinator and silos on loopback, by its own pages.

Each party has a folder of its own with a copy of ``docs/deploy`` and settings with ports of this
machine. The steps of its page are run in that folder
(:mod:`fedwinnow.simulations.rehearsal.documented_steps`). At the end every process started here is
stopped, and no other.
"""

import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import fedwinnow
from fedwinnow.curation.config.coordinator import MemberSection
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import to_toml
from fedwinnow.curation.errors import TransportError
from fedwinnow.curation.process_guard import scratch_folder
from fedwinnow.curation.watchdog import end_marked
from fedwinnow.simulations.rehearsal.documented_steps import (
    DEPLOY,
    RehearsedMachine,
    settings_of,
    wait_until,
)
from fedwinnow.simulations.rehearsal.toy_deployment import deployed_config, site_config


@dataclass(slots=True, kw_only=True)
class Rehearsal:
    """Coordinator and silos on loopback, set up as in ``docs/deploy``."""

    root: Path
    coordinator: RehearsedMachine
    silos: Mapping[str, RehearsedMachine]
    proxy: str
    """Address of the proxy."""
    superlink: str
    """Address of the SuperLink, which silos cannot reach."""

    def open(self) -> None:
        """Start the coordinator's side: certificates, SuperLink, executor, proxy, connection."""
        self.coordinator.step("certificates")
        for silo in self.silos.values():
            shutil.copy(self.coordinator.folder / "certificates" / "ca.crt", silo.folder)
        for name in ("superlink", "executor", "proxy"):
            self.coordinator.serve(name)
        self._listening(self.superlink, "superlink")
        self._listening(self.proxy, "proxy")
        self.coordinator.step("connect")

    def admit(self, site: str) -> None:
        """Make a silo's node key and register it at the coordinator."""
        self.silos[site].step("node-key")
        public = self.silos[site].folder / "node" / "key.pub"
        shutil.copy(public, self.coordinator.folder / f"{site}.pub")
        self.coordinator.step("register", SITE=site)

    def join(self, site: str, *, agent: bool = True) -> None:
        """Start a silo's agent, node and executor, and wait until the node is up."""
        silo = self.silos[site]
        if agent:
            silo.serve("agent")
            door = Path(silo.environment["FEDWINNOW_SOCKET"])
            wait_until(door.is_socket, f"agent of {site}", log=silo.log("agent"))
        silo.serve("node")
        silo.serve("node-executor")
        log = silo.log("node")
        wait_until(lambda: "SuperNode ID:" in log.read_text(), f"node of {site}", log=log)

    def _listening(self, address: str, name: str) -> None:
        log = self.coordinator.log(name)
        wait_until(lambda: _listens(address), f"{name} on {address}", log=log)

    def close(self) -> None:
        """Stop every process that was started here."""
        for party in (*self.silos.values(), self.coordinator):
            for process in party.running.values():
                process.terminate()  # all at once, so that no one waits for another
        for party in (*self.silos.values(), self.coordinator):
            for name in list(party.running):
                party.stop(name)
        end_marked(f"FEDWINNOW_REHEARSAL={self.root}", grace=0.0)


@contextmanager
def open_rehearsal(sites: tuple[str, ...]) -> Iterator[Rehearsal]:
    """Make folders and settings of a coordinator and silos; start nothing, stop all at the end.

    Raises:
        TransportError: ``docs/deploy`` is missing; the package does not run from a checkout.
    """
    if not DEPLOY.is_dir():
        message = f"{DEPLOY}: not there; rehearse in a checkout of the repository"
        raise TransportError(message)
    with scratch_folder(short=True) as root:
        ports = iter(free_ports(2 + len(sites)))
        superlink, proxy = (f"127.0.0.1:{next(ports)}" for _ in range(2))
        home = root / "coordinator"
        link = {"NAMES": "localhost 127.0.0.1", "PROXY": proxy, "SUPERLINK": superlink}
        link |= {"CERTIFICATES": f"{home}/certificates", "LINK_STATE": f"{home}/link"}
        link |= {"PROXY_STATE": f"{home}/proxy", "FLOWER": f"{home}/.flwr"}
        silos = {}
        for site in sites:
            own = root / site
            node = {"SITE": site, "COORDINATOR": proxy, "CA": f"{own}/ca.crt"}
            node |= {"NODE_KEY": f"{own}/node/key", "SUPERNODE": f"127.0.0.1:{next(ports)}"}
            node |= {"EXECUTOR_SECRET": f"{own}/node/executor.secret"}
            node |= {"SOCKET": f"{own}/run/agent.sock", "TOKEN": f"{own}/run/token"}
            node |= {"NODE_STATE": f"{own}/flower-node", "FLOWER": f"{own}/flower-app"}
            silos[site] = _party(root, site, "silo", node)
        coordinator = _party(root, "coordinator", "coordinator", link)
        stage = Rehearsal(
            root=root, coordinator=coordinator, silos=silos, proxy=proxy, superlink=superlink
        )
        try:
            yield stage
        finally:
            stage.close()


def write_deployment(stage: Rehearsal, scenario: RunConfig) -> Path:
    """Write keys, ``site.toml`` and ``run.toml`` of a deployed run over a scenario's sites.

    The policies are those of
    :func:`fedwinnow.simulations.rehearsal.toy_deployment.site_config`.

    Returns:
        The path of ``run.toml``.
    """
    key = _key_in(stage.coordinator.step("coordinator-key"))
    members = []
    for site in scenario.sites:
        silo = stage.silos[site.name]
        text = to_toml(site_config(scenario, site, silo.folder, key))
        (silo.private / "site.toml").write_text(text, encoding="utf-8")
        members.append(MemberSection(name=site.name, key=_key_in(silo.step("check"))))
    home = stage.coordinator.private
    run = deployed_config(scenario, members, str(home / "coordinator.key"))
    section = replace(run.coordinator, connection="federation")
    run = replace(run, coordinator=section, run=replace(run.run, output=str(home / "runs")))
    (home / "run.toml").write_text(to_toml(run), encoding="utf-8")
    return home / "run.toml"


def _key_in(said: str) -> str:
    """Return the public key in a command's output."""
    [key] = set(re.findall(r"fedwinnow-key-1:\S+", said))
    return str(key)


def free_ports(count: int) -> list[int]:
    """Return free ports of this machine."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _party(root: Path, name: str, page: str, given: Mapping[str, str]) -> RehearsedMachine:
    folder = root / name
    shutil.copytree(DEPLOY, folder)
    (folder / "private").mkdir(mode=0o700)
    programs = root / "bin"
    programs.mkdir(exist_ok=True)
    ours = programs / "fedwinnow"  # this checkout's, whether it is installed or not
    ours.write_text(f'#!/bin/sh\nexec {sys.executable} -m fedwinnow.cli.main "$@"\n')
    ours.chmod(0o755)
    own = {"PROGRAMS": str(Path(sys.executable).parent), "GROUP": "", **given}
    shipped = settings_of(f"{page}.env")
    if own.keys() != shipped.keys():
        message = f"{page}.env: expected {sorted(own)}, got {sorted(shipped)}"
        raise TransportError(message)
    lines = "".join(f'{key}="{value}"\n' for key, value in own.items())
    (folder / f"{page}.env").write_text(lines, encoding="utf-8")
    packages = str(Path(fedwinnow.__file__).resolve().parents[1])
    path = os.pathsep.join([str(programs), own["PROGRAMS"], os.environ.get("PATH", os.defpath)])
    inherited = {key: value for key, value in os.environ.items() if key != "FLWR_HOME"}
    environment = inherited | {  # nothing of Flower's beyond what a reader of the page types
        "FEDWINNOW_REHEARSAL": str(root),
        "FEDWINNOW_SOCKET": own.get("SOCKET", ""),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "HOME": str(folder),
        "PATH": path,
        "PYTHONPATH": os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH", "")])),
        "TMPDIR": str(root),
    }
    return RehearsedMachine(folder=folder, page=f"{page}.md", environment=environment)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True
