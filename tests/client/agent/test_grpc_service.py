"""Laws of the agent behind its socket: who is answered, what is computed, and what stays."""

import hashlib
import json
import os
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from toy_deployment_files import write_toy_deployment

from fedwinnow.client.agent import grpc_service, listener
from fedwinnow.client.agent.frames import (
    CHUNK,
    HANDLE,
    OPTIONS,
    STATUS,
    TOKEN,
    socket_address,
    write_stamp_frame,
)
from fedwinnow.client.agent.grpc_service import Activity, Agent
from fedwinnow.client.agent.relay import agent_status, relay_envelope
from fedwinnow.client.boundary import release
from fedwinnow.client.boundary.guarded_site import GuardedSite
from fedwinnow.client.budget import ledger
from fedwinnow.client.phases import table
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.curation.config.load_files import load_run, load_site
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.site import AgentSection, SiteConfig
from fedwinnow.curation.config.strict_toml import canonical_json
from fedwinnow.curation.errors import ConfigError, OutputError, TransportError
from fedwinnow.curation.protocol import messages, wire
from fedwinnow.curation.protocol.envelope import Envelope, Stamp, decrypt, sign, verify
from fedwinnow.curation.protocol.keys import PrivateKey

LONGEST = 30.0
"""Longest wait for anything here, seconds: for a machine that does much else."""
DENIED, UNKNOWN = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED
CLOSE = messages.CloseRequest(header=messages.Header(run="r", phase="close"))
"""A question that costs nothing: the run was never joined, so the answer is a refusal."""


def until(holds) -> None:
    """Wait until something holds; a test fails where it never does."""
    end = time.monotonic() + LONGEST
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@dataclass(kw_only=True)
class Silo:
    """A toy site, its coordinator, and one agent at a time."""

    config: SiteConfig
    run: RunConfig
    coordinator: PrivateKey
    cache: ProcessCache
    agent: Agent | None = None
    sequence: int = 0

    def start(self, **words) -> Agent:
        """An agent over whatever is on the disk."""
        boundary = GuardedSite.open(self.config, cache=self.cache)
        self.agent = Agent(boundary=boundary, section=self.config.agent, **words)
        self.agent.start()
        return self.agent

    def stop(self) -> None:
        """Stop the agent, as its service manager does."""
        if self.agent is not None:
            self.agent.stop(grace=0.2)
            self.agent = None

    def sign(self, payload: bytes, key: PrivateKey | None = None, **words) -> Envelope:
        """A payload under the next sequence number."""
        self.sequence += 1
        plain = {"site": "north", "run": "r", "phase": "close", "sequence": self.sequence}
        return sign(key or self.coordinator, payload, **(plain | words))

    def ask(self, request=CLOSE, **words) -> Envelope:
        """A request, signed."""
        header = request.header
        return self.sign(wire.encode(request), run=header.run, phase=header.phase, **words)

    @property
    def join(self) -> messages.JoinRequest:
        """The first question of a run."""
        header = messages.Header(run="r", phase="join")
        return messages.JoinRequest(header=header, terms=canonical_json(self.run.terms()))

    def carry(self, envelope: Envelope, timeout: float = LONGEST) -> Envelope:
        """Through the shim."""
        section = self.config.agent
        return relay_envelope(envelope, section.socket, section.token, timeout=timeout)

    def opened(self, reply: Envelope) -> messages.Reply:
        """What the coordinator reads."""
        verify(reply, self.agent.boundary.key.public)
        return wire.decode(decrypt(reply.payload, self.coordinator))

    def entries(self) -> list[dict]:
        """What left."""
        return [line for _, line in ledger.read_chain(Path(self.config.work))]

    def last(self) -> int:
        """The sequence number on the disk."""
        file = Path(self.config.work) / "sequence"
        return int(file.read_text()) if file.exists() else 0

    def status(self) -> dict:
        """What the agent says that it does."""
        return agent_status(self.config.agent.socket, self.config.agent.token, timeout=LONGEST)


@pytest.fixture(scope="module")
def deployment() -> Iterator[Path]:
    """A toy deployment in a folder whose path is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="fw-", dir="/tmp"))
    write_toy_deployment(folder, samples=8)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def cache() -> ProcessCache:
    """The model, loaded once."""
    return ProcessCache()


@pytest.fixture
def silo(deployment, cache) -> Iterator[Silo]:
    """The north silo with a work folder and a socket of its own; no agent yet."""
    own = Path(tempfile.mkdtemp(prefix="s-", dir=deployment))
    config = load_site(deployment / "north" / "site.toml")
    section = replace(config.agent, socket=str(own / "d" / "a"), token=str(own / "d" / "token"))
    made = Silo(
        config=replace(config, agent=section, work=str(own / "work")),
        run=load_run(deployment / "run.toml"),
        coordinator=PrivateKey.load(deployment / "coordinator.key"),
        cache=cache,
    )
    yield made
    made.stop()


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Phases that the boundary was let to answer."""
    seen, honest = [], GuardedSite.answer

    def counted(self, stamp, payload):
        seen.append(stamp.phase)
        return honest(self, stamp, payload)

    monkeypatch.setattr(GuardedSite, "answer", counted)
    return seen


def spoken(silo: Silo, frames, *, shows=lambda token: token, method: str = HANDLE):
    """Status code and details for frames as they are; None and all bytes where it answers."""
    shown = shows(silo.agent._token)
    metadata = () if shown is None else ((TOKEN, shown),)
    with grpc.insecure_channel(
        socket_address(silo.config.agent.socket), options=OPTIONS
    ) as channel:
        call = channel.stream_stream(method)(iter(frames), timeout=LONGEST, metadata=metadata)
        try:
            return None, b"".join(call)
        except grpc.RpcError as error:
            return error.code(), error.details()


def framed(envelope: Envelope, size: int | None = None, **parts: bytes) -> list[bytes]:
    """Frames of a request, some of them not as they should be."""
    made = replace(envelope, **parts)
    announced = len(made.payload) if size is None else size
    return [write_stamp_frame(made.stamp, made.signature, announced), made.payload]


def test_agent_answers_the_coordinator(silo, asked):
    """The control of what follows: a join is computed, encrypted, signed and entered."""
    silo.start()
    reply = silo.carry(silo.ask(silo.join))
    assert isinstance(silo.opened(reply), messages.Joined)
    assert [entry["kind"] for entry in silo.entries()] == ["Charge:Joined", "Joined"]
    assert silo.agent.boundary.ledger.head == json.loads(reply.stamp)["ledger"]
    assert (asked, silo.last()) == (["join"], 1)


TOKENS = {
    "none": lambda token: None,
    "an empty one": lambda token: "",
    "another one": lambda token: token[::-1],
    "its beginning": lambda token: token[:-1],
    "more than it": lambda token: token + "x",
}


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("method", [HANDLE, STATUS])
def test_agent_answers_nobody_without_its_token(silo, asked, kind, method):
    """No token, an empty one, another one or its beginning: neither an answer nor a status."""
    silo.start()
    frames = framed(silo.ask()) if method == HANDLE else [b""]
    assert spoken(silo, frames, shows=TOKENS[kind], method=method) == (UNKNOWN, "no token")
    assert (asked, silo.entries(), silo.last()) == ([], [], 0)


STRANGERS = {
    "no words": lambda s: [],
    "garbage for words": lambda s: [b"\xff" * 200],
    "endless nesting for words": lambda s: [b"[" * 100_000],
    "no signature": lambda s: framed(s.ask(), signature=b""),
    "a signature of zeros": lambda s: framed(s.ask(), signature=b"\0" * 64),
    "another key": lambda s: framed(s.ask(key=PrivateKey.new())),
    "the site's own key": lambda s: framed(s.ask(key=s.agent.boundary.key)),
    "another site's name": lambda s: framed(s.ask(site="south")),
    "a changed sequence number": lambda s: framed(changed(s.ask(), sequence=99)),
    "a changed phase": lambda s: framed(changed(s.ask(), phase="train")),
    "a number of zero": lambda s: framed(s.ask(sequence=0)),
    "a number below zero": lambda s: framed(s.ask(sequence=-1)),
}


def changed(envelope: Envelope, **words) -> Envelope:
    """Other words under the same signature."""
    tree = json.loads(envelope.stamp) | words
    return replace(envelope, stamp=json.dumps(tree, sort_keys=True).encode())


@pytest.mark.parametrize("kind", STRANGERS)
def test_agent_gives_a_stranger_no_byte(silo, asked, kind):
    """Who cannot show the coordinator's word learns nothing and uses up no number."""
    silo.start()
    assert spoken(silo, STRANGERS[kind](silo)) == (DENIED, "not authorised")
    assert (asked, silo.entries(), silo.last()) == ([], [], 0)


PAYLOADS = {
    "another payload of the same length": lambda s, e: framed(e, payload=bytes(len(e.payload))),
    "a shorter payload": lambda s, e: framed(e, payload=e.payload[:-1]),
    "a longer payload": lambda s, e: framed(e, payload=e.payload + b"\0"),
    "no payload": lambda s, e: framed(e, payload=b""),
    "fewer bytes than announced": lambda s, e: framed(e, len(e.payload), payload=e.payload[:-1]),
    "more bytes than announced": lambda s, e: [*framed(e), b"\0"],
    "a stream that ends after the words": lambda s, e: framed(e)[:1],
}


@pytest.mark.parametrize("kind", PAYLOADS)
def test_agent_computes_nothing_for_another_payload(silo, asked, kind):
    """The coordinator's stamp over other bytes: refused, and its number is used up."""
    silo.start()
    assert spoken(silo, PAYLOADS[kind](silo, silo.ask())) == (DENIED, "not authorised")
    assert (asked, silo.entries(), silo.last()) == ([], [], 1)


def test_agent_answers_payloads_up_to_its_largest(silo, asked):
    """One byte above ``largest`` is refused; exactly as much is answered."""
    silo.start(largest=300)
    assert spoken(silo, framed(silo.sign(bytes(301)))) == (DENIED, "not authorised")
    assert asked == []
    code, _ = spoken(silo, framed(silo.sign(bytes(300))))
    assert (code, asked) == (None, ["close"])


@pytest.mark.parametrize(("size", "announced"), [(301, 301), (10, 300), (10, 0), (10, 10**12)])
def test_agent_refuses_a_size_before_it_reads_a_payload(silo, asked, size, announced):
    """Above ``largest``, or not the signed one: refused while the payload has yet to come."""
    silo.start(largest=300)
    refused, late = threading.Event(), []

    def frames():
        yield framed(silo.sign(bytes(size)), announced)[0]
        if not refused.wait(10.0):
            late.append(announced)

    assert spoken(silo, frames()) == (DENIED, "not authorised")
    refused.set()
    assert (asked, late) == ([], [])


def test_agent_computes_nothing_for_a_caller_that_breaks_off(silo, asked):
    """A line that breaks between words and payload leaves the agent idle and ready."""
    silo.start()
    envelope, sent = silo.ask(), threading.Event()
    begun = threading.Event()

    def half():
        yield framed(envelope)[0]
        begun.set()
        sent.wait(LONGEST)

    metadata = ((TOKEN, silo.agent._token),)
    with grpc.insecure_channel(
        socket_address(silo.config.agent.socket), options=OPTIONS
    ) as channel:
        call = channel.stream_stream(HANDLE)(half(), timeout=LONGEST, metadata=metadata)
        assert begun.wait(LONGEST)
        until(lambda: silo.last() == 1)
        call.cancel()
        sent.set()
    assert isinstance(silo.opened(silo.carry(silo.ask())), messages.Refusal)
    assert (asked, len(silo.entries())) == (["close"], 1)


def test_agent_answers_a_number_once_even_after_a_restart(silo, asked):
    """The same envelope, an older one, and either at a new agent on the same folder: refused."""
    silo.start()
    older, newer = silo.ask(), silo.ask()
    silo.carry(newer)
    for _ in range(2):
        for envelope in (older, newer):
            with pytest.raises(TransportError, match="does not accept"):
                silo.carry(envelope)
        silo.stop()
        silo.start()
    assert (asked, len(silo.entries()), silo.last()) == (["close"], 1, 2)
    silo.carry(silo.ask())
    assert len(silo.entries()) == 2


def test_agent_with_a_spoilt_number_answers_nobody(silo, asked):
    """A sequence file that is no number is no permission to begin anew."""
    silo.start()
    (Path(silo.config.work) / "sequence").write_text("")
    assert spoken(silo, framed(silo.ask())) == (DENIED, "not authorised")
    assert (asked, silo.entries()) == ([], [])


def test_agent_without_a_disk_for_numbers_tells_no_path(silo, asked):
    """Where a number cannot be read or written nothing is computed; the caller reads no path."""
    silo.start()
    (Path(silo.config.work) / "sequence").mkdir()
    code, told = spoken(silo, framed(silo.ask()))
    assert (code, told) == (grpc.StatusCode.INTERNAL, "see the agent's log")
    assert (asked, silo.entries()) == ([], [])


def test_agent_without_a_disk_for_its_ledger_lets_nothing_leave(silo):
    """A reply that cannot be entered does not leave, and the caller reads no path."""
    silo.start()
    ledger.file_of(Path(silo.config.work)).unlink()
    code, told = spoken(silo, framed(silo.ask()))
    assert (code, told) == (grpc.StatusCode.INTERNAL, "nothing may leave; see the agent's log")
    assert silo.status()["last_error"] != ""
    assert silo.status()["answered"] == 0


def test_agent_has_two_methods(silo):
    """Whatever else is called does not exist."""
    silo.start()
    code, _ = spoken(silo, [b""], method="/fedwinnow.Agent/Data")
    assert code == grpc.StatusCode.UNIMPLEMENTED


def test_agent_goes_on_for_a_caller_that_vanished(silo, monkeypatch):
    """Its work is finished and kept: the same question under a new number computes nothing."""
    began, go, computed, honest = threading.Event(), threading.Event(), [], table._ANSWERS

    def slow(work, request):
        began.set()
        assert go.wait(LONGEST)
        computed.append(request.header.phase)
        return join(work, request)

    join = honest[messages.JoinRequest]
    monkeypatch.setitem(honest, messages.JoinRequest, slow)
    silo.start()
    first = silo.ask(silo.join)
    metadata = ((TOKEN, silo.agent._token),)
    with grpc.insecure_channel(
        socket_address(silo.config.agent.socket), options=OPTIONS
    ) as channel:
        call = channel.stream_stream(HANDLE)(iter(framed(first)), metadata=metadata)
        assert began.wait(LONGEST)
        call.cancel()
    with pytest.raises(TransportError, match="it goes on computing, ask again"):
        silo.carry(silo.ask(silo.join), timeout=0.2)
    assert [entry["kind"] for entry in silo.entries()] == ["Charge:Joined"]
    go.set()
    until(lambda: silo.status()["answered"] > 0)
    with pytest.raises(TransportError, match="does not accept"):
        silo.carry(first)
    again = silo.opened(silo.carry(silo.ask(silo.join)))
    assert isinstance(again, messages.Joined)
    assert computed == ["join"]
    left = [entry for entry in silo.entries() if not entry["kind"].startswith("Charge:")]
    assert len({entry["sha256"] for entry in left}) == 1


def test_agent_computes_one_at_a_time_and_says_so(silo, monkeypatch):
    """Requests queue in order of arrival; status names what is computed and how many wait."""
    gates = {number: threading.Event() for number in (1, 2, 3)}
    at_work, most, order, honest = [], [], [], GuardedSite.answer

    def slow(self, stamp: Stamp, payload: bytes) -> Envelope:
        at_work.append(stamp.sequence)
        most.append(len(at_work))
        assert gates[stamp.sequence].wait(LONGEST)
        order.append(at_work.pop())
        return honest(self, stamp, payload)

    monkeypatch.setattr(GuardedSite, "answer", slow)
    silo.start()
    idle = silo.status()
    assert (idle["site"], idle["state"], idle["waiting"]) == ("north", "idle", 0)
    assert not {"run", "phase"} & idle.keys()
    callers = []
    for waiting in (0, 1, 2):
        callers.append(threading.Thread(target=silo.carry, args=(silo.ask(),)))
        callers[-1].start()
        until(lambda: at_work == [1] and silo.status()["waiting"] == waiting)
    busy = silo.status()
    assert (busy["state"], busy["run"], busy["phase"]) == ("computing", "r", "close")
    assert (busy["answered"], busy["process"]) == (0, os.getpid())
    for number in (3, 2, 1):
        gates[number].set()
    for caller in callers:
        caller.join(LONGEST)
    assert (order, most) == ([1, 2, 3], [1, 1, 1])
    assert [entry["request"] for entry in silo.entries()] == [silo.entries()[0]["request"]] * 3
    until(lambda: silo.status()["state"] == "idle")
    assert (silo.status()["answered"], silo.status()["waiting"]) == (3, 0)


def test_agent_status_tells_no_number_of_samples():
    """Whoever holds the token reads progress in per cent: counts are the policy's to tell."""
    stamp = Stamp(sender="s", site="north", run="r", phase="probe", sequence=1, digest="", size=0)
    shown = []
    for done in (0, 5, 1236, 1237):
        activity = Activity(current=stamp)
        activity.told("north measures its samples", done, 1237)
        tree = activity.tree()
        assert not {done, 1237} & set(tree.values()) - {0, os.getpid()}
        shown.append(tree["percent"])
    assert shown == [0, 0, 99, 100]
    assert Activity(current=stamp).tree()["percent"] == 0


def test_agent_streams_payloads_larger_than_any_frame(silo, monkeypatch):
    """Nine frames there and six back come whole, though no single message may be so long."""
    came, long = [], "x" * (6 * CHUNK)
    reply = messages.Refusal(header=CLOSE.header, site="north", clause="failed", reason=long)

    def taken(_: GuardedSite, stamp: Stamp, payload: bytes) -> messages.Request:
        came.append((hashlib.sha256(payload).hexdigest(), stamp.digest))
        return CLOSE

    monkeypatch.setattr(GuardedSite, "_request", taken)
    released = release.Released(reply, wire.encode(reply), release._KEY)
    monkeypatch.setattr(GuardedSite, "_decide", lambda self, request, digest: released)
    silo.start()
    payload = os.urandom(9 * CHUNK + 7)
    assert dict(OPTIONS)["grpc.max_receive_message_length"] < len(long) < len(payload)
    answer = silo.carry(silo.sign(payload))
    assert silo.opened(answer) == reply
    assert came == [(hashlib.sha256(payload).hexdigest(),) * 2]


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_agent_opens_folder_socket_and_token_to_its_group_alone(silo, mask):
    """Modes 0750, 0660 and 0640 whatever the umask; key and ledger are the agent's own."""
    before = os.umask(mask)
    try:
        silo.start()
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    path = Path(silo.config.agent.socket)
    assert stat.S_ISSOCK(path.stat().st_mode)
    files = (path.parent, path, Path(silo.config.agent.token))
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o750, 0o660, 0o640]
    assert stat.S_IMODE(Path(silo.config.agent.key).stat().st_mode) == 0o600
    silo.stop()
    assert not path.exists()


def test_agent_that_was_killed_leaves_a_socket_that_the_next_one_replaces(silo):
    """A socket that nobody listens on is no obstacle; token and numbers stay."""
    first = silo.start()._token
    silo.stop()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(silo.config.agent.socket)
    assert silo.start()._token == first
    assert silo.status()["state"] == "idle"


def test_agent_shows_no_token_where_it_is_printed(silo):
    """Neither the agent nor its boundary prints a token or a private key."""
    agent = silo.start()
    shown = repr(agent)
    assert agent._token not in shown
    assert agent.boundary.key.signing.hex() not in shown
    assert repr(agent.boundary.key.signing)[2:-1] not in shown


@pytest.fixture
def section() -> Iterator[AgentSection]:
    """A place to listen, not made yet."""
    folder = Path(tempfile.mkdtemp(prefix="fw-", dir="/tmp"))
    yield AgentSection(socket=str(folder / "d" / "a"), token=str(folder / "d" / "token"))
    shutil.rmtree(folder)


def folder_of(section: AgentSection) -> Path:
    """The folder of the socket, made."""
    folder = Path(section.socket).parent
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o777])
def test_listening_leaves_a_folder_alone_that_others_use(section, mode):
    """Open to others and with a file that is not the agent's: refused, and its mode stays."""
    folder = folder_of(section)
    (folder / "other").touch()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match="in a folder of its own"):
        listener.prepare_folder(section)
    assert stat.S_IMODE(folder.stat().st_mode) == mode
    assert [entry.name for entry in folder.iterdir()] == ["other"]


def test_listening_takes_a_folder_of_its_own(section):
    """A folder that only the agent enters may hold more; an open one that is empty is closed."""
    folder = folder_of(section)
    folder.chmod(0o777)
    token = listener.prepare_folder(section)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    (folder / "other").touch()
    folder.chmod(0o700)
    assert listener.prepare_folder(section) == token


@pytest.mark.parametrize("text", ["", "short", "x" * 31, "x" * 20 + "\n" + "x" * 20, "é" * 40])
def test_listening_takes_no_token_that_is_no_secret(section, text):
    """Short, of several lines or not in ASCII: refused, and the message does not repeat it."""
    file = folder_of(section) / "token"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"at least 32 printable") as caught:
        listener.prepare_folder(section)
    assert not text or text not in str(caught.value)
    assert file.read_text(encoding="utf-8") == text


def test_listening_makes_a_token_nobody_guesses(section):
    """Each folder gets another token of 256 bits, and keeps it."""
    tokens = set()
    for _ in range(4):
        tokens.add(listener.prepare_folder(section))
        assert listener.prepare_folder(section) in tokens
        Path(section.token).unlink()
    assert len(tokens) == 4
    assert all(len(token) == 43 for token in tokens)


def test_listening_replaces_a_socket_that_nobody_answers(section):
    """A stale socket goes; the token beside it stays."""
    token, path = listener.prepare_folder(section), Path(section.socket)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(section.socket)
    assert path.exists()
    assert listener.prepare_folder(section) == token
    assert not path.exists()


@pytest.mark.parametrize("busy", [False, True])
def test_listening_ends_no_living_agents_socket(section, busy):
    """Somebody listens there, or listens but has no time to accept: refused, and it stays."""
    listener.prepare_folder(section)
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(section.socket)
        alive.listen(0)
        callers = crowd(section.socket) if busy else []
        with pytest.raises(OutputError, match="another agent answers there"):
            listener.prepare_folder(section)
        assert stat.S_ISSOCK(Path(section.socket).stat().st_mode)
        for caller in callers:
            caller.close()


def crowd(path: str) -> list[socket.socket]:
    """As many callers as a listener's queue takes, and one that it does not take."""
    callers = []
    for _ in range(64):
        callers.append(socket.socket(socket.AF_UNIX))
        callers[-1].setblocking(False)
        try:
            callers[-1].connect(path)
        except BlockingIOError:
            return callers
    message = "the queue takes everyone"
    raise AssertionError(message)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_listening_removes_nothing_that_is_no_socket(section, kind):
    """A file or a folder at the socket's path is somebody's: refused, and it stays."""
    path = folder_of(section) / "a"
    path.mkdir() if kind == "folder" else path.write_text("mine")
    with pytest.raises(OutputError, match="no socket stands there"):
        listener.prepare_folder(section)
    assert path.is_dir() if kind == "folder" else path.read_text() == "mine"


def test_listening_knows_its_group(section):
    """A group that does not exist is refused by name, before anything is made."""
    with pytest.raises(ConfigError, match=r"agent\.group 'no-such-group' does not exist"):
        listener.prepare_folder(replace(section, group="no-such-group"))
    assert not Path(section.socket).parent.exists()


def test_listening_at_a_path_too_long_makes_nothing(silo):
    """A socket that no system could bind is refused before folder and token are made."""
    folder = Path(silo.config.work) / ("f" * 120)
    section = replace(silo.config.agent, socket=str(folder / "a"), token=str(folder / "t"))
    silo.config = replace(silo.config, agent=section)
    with pytest.raises(ConfigError, match="at most 100 bytes"):
        silo.start()
    silo.agent.boundary.ledger.close()
    silo.agent = None
    assert not folder.exists()


def test_log_of_the_agent_tells_rate_and_time_left(monkeypatch):
    """Law: units done, their rate since they were first told, and what is left; idle: nothing."""
    now = [100.0]
    monkeypatch.setattr(grpc_service.time, "time", lambda: now[0])
    activity = Activity()
    activity.told("north measures", 5, 100)
    assert not activity.words()
    activity.current = SimpleNamespace(run="run", phase="measure")
    activity.since = 40.0
    now[0] = 110.0
    assert activity.words() == "run run, phase measure, 70 s so far"
    activity.told("north measures", 25, 100)
    told = "north measures: 25 of 100, 2 a second, about 38 s left"
    assert activity.words() == f"run run, phase measure, 70 s so far: {told}"
    activity.told("north evaluates", 0, 10)
    assert activity.words() == "run run, phase measure, 70 s so far"
