"""Laws of the silo's user boundary: code of the node's user reads nothing and obtains nothing."""

import grp
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hostile_bundle as hostile
import pytest
from toy_deployment_files import write_toy_deployment

from fedwinnow.client.agent.frames import read_stamp_frame
from fedwinnow.client.agent.grpc_service import Agent
from fedwinnow.client.agent.relay import agent_status
from fedwinnow.client.boundary.guarded_site import GuardedSite
from fedwinnow.client.budget import ledger
from fedwinnow.curation.config.identity import run_id
from fedwinnow.curation.config.load_files import load_run, load_site
from fedwinnow.curation.config.site import SiteConfig
from fedwinnow.curation.config.strict_toml import canonical_json, to_toml
from fedwinnow.curation.errors import ProtocolError, TransportError
from fedwinnow.curation.protocol import messages, wire
from fedwinnow.curation.protocol.envelope import Envelope, Stamp, decrypt
from fedwinnow.server.transport.coordinator_envelopes import CoordinatorEnvelopes
from fedwinnow.simulations.rehearsal.documented_steps import wait_until

ROOT = Path(__file__).resolve().parents[2]
AGENT, NODE = 64001, 64002
"""Users without a name: nobody has to be made, and nothing is left behind."""


def borrowed() -> grp.struct_group | None:
    """A group that this machine knows by name; only two processes of ours are put into it."""
    return next((group for group in grp.getgrall() if group.gr_gid > 0), None)


def obstacle() -> str:
    """Why two other users cannot be played here."""
    if os.geteuid() != 0 or not Path("/proc/self/environ").exists():
        return "needs root and /proc, to start processes as other users"
    if borrowed() is None:
        return "needs a group with a name besides root's"
    try:
        for user in (AGENT, NODE):
            who = {"user": user, "group": user, "extra_groups": [borrowed().gr_gid]}
            subprocess.run(["true"], check=True, **who)
    except (OSError, subprocess.SubprocessError) as error:
        return f"this machine knows no users {AGENT} and {NODE}: {error}"
    return ""


OBSTACLE = obstacle()
pytestmark = [
    pytest.mark.flower,
    pytest.mark.skipif(OBSTACLE != "", reason=OBSTACLE or "-"),
]


@dataclass(kw_only=True)
class Stage:
    """A silo of the agent's user, an agent, and a coordinator."""

    folder: Path
    config: SiteConfig
    paths: dict[str, str]
    envelopes: CoordinatorEnvelopes
    request: Envelope
    log: Path
    process: subprocess.Popen

    def bundle(self, user: int, reply: list[str] | None = None) -> dict[str, Any]:
        """What the bundle got as a user of the group; ``reply`` is one that it captured before."""
        own = self.folder / f"of-{user}"
        own.mkdir(exist_ok=True)
        os.chown(own, user, user)
        plan = self.folder / "plan.json"
        words = {"paths": self.paths, "own": str(own), "request": hostile.text(self.request)}
        words |= {"coordinator": self.envelopes.key.public.text, "reply": reply}
        plan.write_text(json.dumps(words))
        command = started("bundle", user, plan, plan)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120,
                              env=environment(own), cwd="/")  # fmt: skip
        assert done.returncode == 0, done.stderr + self.log.read_text()
        return json.loads(done.stdout)


def started(role: str, user: int, file: Path, run: Path) -> list[str]:
    """The command of a process that becomes a user."""
    script = str(Path(__file__).with_name("other_user.py"))
    group = borrowed().gr_gid
    return [sys.executable, script, role, str(user), str(user), str(group), str(file), str(run)]


def environment(home: Path) -> dict[str, str]:
    """What a process of another user needs to know."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers"), str(Path(__file__).parent)])
    return {"PATH": os.environ["PATH"], "PYTHONPATH": path, "HOME": str(home)} | {
        "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}  # fmt: skip


def own(path: Path, mode: int) -> None:
    """Give a path to the agent's user."""
    os.chown(path, AGENT, AGENT)
    path.chmod(mode)


def furnished(folder: Path) -> Path:
    """A toy silo as docs/deploy/silo.md wants it: data, model, key and policy are the agent's."""
    run, site = write_toy_deployment(folder, samples=8), folder / "north"
    file = site / "site.toml"
    config = load_site(file)
    section = replace(config.agent, group=borrowed().gr_name)
    file.write_text(to_toml(replace(config, agent=section)))
    folder.chmod(0o711)
    own(site, 0o711)
    for path in (folder / "north.jsonl", file, Path(config.agent.key)):
        own(path, 0o600)
    for path in (folder / "model").iterdir():
        own(path, 0o600)
    own(folder / "model", 0o700)
    return run


def paths_of(folder: Path, run: str) -> dict[str, str]:
    """Where everything lies: the bundle is told all of it."""
    site, work = folder / "north", folder / "north" / "work"
    return {name: str(path) for name, path in {
        "data": folder / "north.jsonl",
        "model": folder / "model" / "config.json",
        "model folder": folder / "model",
        "key": site / "agent.key",
        "site": site / "site.toml",
        "work": work,
        "runs": work / run,
        "ledger": work / "egress.jsonl",
        "head": work / "egress.head",
        "sequence": work / "sequence",
        "terms": work / run / "terms.json",
        "reply": work / run / "replies",
        "folder": site / "run",
        "socket": site / "run" / "agent.sock",
        "token": site / "run" / "token",
    }.items()}  # fmt: skip


def answers(paths: dict[str, str]) -> bool:
    """Whether the agent listens."""
    try:
        return agent_status(paths["socket"], paths["token"])["state"] == "idle"
    except TransportError:
        return False


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """The agent listens, as its user."""
    folder = Path(tempfile.mkdtemp(prefix="fw-", dir="/tmp"))
    run = furnished(folder)
    config, paths = load_run(run), paths_of(folder, run_id(load_run(run)))
    envelopes, log = (
        CoordinatorEnvelopes.open(config, folder / "runs" / "toy"),
        folder / "agent.log",
    )
    header = messages.Header(run=run_id(config), phase="join")
    join = messages.JoinRequest(header=header, terms=canonical_json(config.terms()))
    command = started("agent", AGENT, folder / "north" / "site.toml", run)
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=environment(folder / "north"), cwd="/"
        )
    try:
        wait_until(lambda: answers(paths), "agent", log=log, longest=120.0)
        request = envelopes.envelope(join, "north")
        yield Stage(
            folder=folder,
            config=load_site(folder / "north" / "site.toml"),
            paths=paths,
            envelopes=envelopes,
            request=request,
            log=log,
            process=process,
        )
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def entered(stage) -> Path:
    """The work folder."""
    return Path(stage.paths["work"])


@pytest.fixture(scope="module")
def results(stage) -> dict[str, Any]:
    """What the bundle got as the node's user."""
    replies = Path(stage.paths["reply"])
    stage.paths["reply"] = str(replies / "join.safetensors")
    found = stage.bundle(NODE)
    (stored,) = replies.iterdir()
    stage.paths["reply"] = str(stored)
    return found


@pytest.fixture(scope="module")
def control(stage, results) -> dict[str, Any]:
    """What the same bundle gets as the agent's own user; the agent does not outlive it."""
    return stage.bundle(AGENT, reply=results["reply"])


def test_hostile_bundle_carries_what_it_cannot_open(stage, results):
    """The honest way works through the same hands: the coordinator reads the site's answer."""
    assert results["users"] == [NODE] * 6
    reply = hostile.envelope_of(results["reply"])
    assert isinstance(
        stage.envelopes.reply(reply, stage.envelopes.sent(stage.request)), messages.Joined
    ), stage.log.read_text()


@pytest.mark.parametrize("name", [*hostile.READS, *hostile.PROCESS, *hostile.WRITES])
def test_hostile_bundle_cannot_touch_the_silo(results, name):
    """Each file, folder, process and socket of the agent: the system itself says no."""
    kind, told = results["tried"][name]
    assert kind == "PermissionError", told


@pytest.mark.parametrize("name", hostile.ASKS)
def test_hostile_bundle_obtains_no_reply(results, name):
    """Whatever it sends, the agent says no word but that it does not accept it."""
    kind, told = results["tried"][name]
    assert kind == "TransportError", told
    assert "does not accept this request" in told or "the token is not its own" in told


@pytest.mark.parametrize("name", hostile.OPENS)
def test_hostile_bundle_cannot_read_the_reply(results, name):
    """The reply that it carries stays encrypted."""
    assert results["tried"][name][0] in {"ProtocolError", "LookupError"}, results["tried"][name]


def test_hostile_bundle_reads_the_request(stage, results):
    """What is not protected: a request is only signed, and its carrier reads the terms."""
    asked = wire.decode(stage.request.payload)
    assert isinstance(asked, messages.JoinRequest)
    assert asked.header.run.encode() in stage.request.payload
    assert results["tried"]["find words in the reply"][0] == "LookupError"


def test_hostile_bundle_cannot_speak_for_the_site(stage, results):
    """No reply that it changes or makes is taken; nor is a true one for a later request."""
    sent = stage.envelopes.sent(stage.request)
    for name, parts in results["forged"].items():
        with pytest.raises(ProtocolError):
            pytest.fail(f"{name}: {stage.envelopes.reply(hostile.envelope_of(parts), sent)}")
    later = replace(sent, sequence=sent.sequence + 1)
    with pytest.raises(ProtocolError, match="stamped with sequence"):
        stage.envelopes.reply(hostile.envelope_of(results["reply"]), later)


@pytest.mark.usefixtures("results")
def test_hostile_bundle_leaves_the_agent_as_it_was(stage, entered):
    """One message left, charged before; the chain is whole; every file is the agent's alone."""
    charge, entry = (line for _, line in ledger.read_chain(entered))
    assert charge["kind"] == "Charge:Joined"
    assert (entry["kind"], entry["recipient"]) == ("Joined", stage.envelopes.key.public.fingerprint)
    assert ledger.verify_chain(entered) == []
    for path in [entered, *entered.rglob("*")]:
        assert (path.stat().st_uid, path.stat().st_mode & 0o077) == (AGENT, 0), path
    group = borrowed().gr_gid
    for name, mode in (("folder", 0o750), ("socket", 0o660), ("token", 0o640)):
        found = Path(stage.paths[name]).stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (AGENT, group, mode)
    assert stage.process.poll() is None
    assert answers(stage.paths)


def test_hostile_bundle_learns_of_a_status_what_the_page_says(results):
    """The token gives the status: site, process, times and numbers of messages, idle as it was."""
    assert results["status"].keys() == {
        "site", "state", "process", "up_seconds", "answered", "waiting", "last_error"
    }  # fmt: skip
    assert (results["status"]["answered"], results["status"]["last_error"]) == (1, "")


def test_hostile_bundle_would_get_all_as_the_agents_user(stage, control):
    """The control: each attempt on files, folders, process and socket is able to succeed."""
    assert control["users"] == [AGENT] * 6
    for name in (*hostile.READS, *hostile.WRITES):
        assert control["tried"][name][0] == "got", (name, control["tried"][name])
    stage.process.wait(10)


def test_hostile_bundle_would_read_the_process_as_root(stage):
    """The control of attempts on a process that changed its user: root may look into it."""
    stolen = hostile.Stolen(
        paths={},
        own=stage.folder,
        coordinator=stage.envelopes.key.public,
        request=stage.request,
        reply=stage.request,
        process=os.getpid(),
    )
    for name, attempt in hostile.PROCESS.items():
        assert hostile.outcome(attempt, stolen)[0] == "got", name


def test_hostile_bundle_would_get_replies_of_a_trusting_agent(stage, results, monkeypatch):
    """The control: an agent that believes what it is sent answers each request of the bundle."""

    def believing(_: Agent, frames) -> tuple[Stamp, bytes]:
        text = read_stamp_frame(next(frames))[0]
        return Stamp(**json.loads(text)), b"".join(frames)

    monkeypatch.setattr(Agent, "admitted", believing)
    monkeypatch.setattr(Agent, "knows", lambda self, token: True)
    there = stage.folder / "trusting"
    doors = {name: str(there / "d" / name) for name in ("socket", "token")}
    section = replace(stage.config.agent, key=str(there / "key"), **doors)
    trusting = replace(stage.config, agent=section, work=str(there / "work"))
    agent = Agent(boundary=GuardedSite.open(trusting), section=section)
    try:
        agent.start()
        stolen = hostile.Stolen(
            paths={"socket": section.socket, "token": section.token},
            own=there,
            coordinator=stage.envelopes.key.public,
            request=stage.request,
            reply=hostile.envelope_of(results["reply"]),
        )
        for name, attempt in hostile.ASKS.items():
            kind, told = hostile.outcome(attempt, stolen)
            assert kind == "got", (name, told)
    finally:
        agent.stop()


def test_hostile_bundle_would_read_an_open_reply(stage, results):
    """The control: words are found in a reply that nobody encrypted, and its reader decrypts it."""
    reply = hostile.envelope_of(results["reply"])
    plain = decrypt(reply.payload, stage.envelopes.key)
    stolen = hostile.Stolen(paths={}, own=stage.folder, coordinator=stage.envelopes.key.public,
                            request=stage.request, reply=replace(reply, payload=plain))  # fmt: skip
    assert hostile.outcome(hostile.seen, stolen)[0] == "got"
