"""Send our messages over Flower's Grid, and take replies as they arrive, until the deadline.

Flower knows nodes by random ids, the protocol knows sites by name. At join every reachable node is
asked and its reply says its name; later requests go to the named sites only. Every message carries
the deadline as its time to live, so an answer that comes too late is dropped by Flower itself.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedwinnow.curation.atomic_files import write_json
from fedwinnow.curation.errors import CurationError, ProtocolError, TransportError
from fedwinnow.curation.protocol import messages
from fedwinnow.curation.protocol.flower_records import content_bytes
from fedwinnow.server.transport.codec import EnvelopeCodec, PlainCodec
from fedwinnow.server.transport.interface import Delivery, Earlier

logger = logging.getLogger(__name__)

CURATION, IDENTITY = "query.curation", "query.identity"
"""Message types that :mod:`fedwinnow.client.app` answers."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Talk:
    """Requests to one node in one exchange, and how they went so far."""

    site: str
    """Name of the site; "" where the node has not said it yet."""
    node: int | None
    todo: list[messages.Request]
    """Requests in their order; the last is the one that all sites get."""
    again: int
    """Number of times that a request may still be sent again."""
    due: float = 0.0
    """Earliest time to send, on the monotonic clock."""
    why: str = ""
    """Last failure, in words."""
    down: int = 0

    def silent(self, why: str) -> Delivery:
        """Return a delivery without a reply, for the reason ``why``."""
        label = self.site or f"node {self.node}"
        earlier = self.todo[0] if len(self.todo) > 1 else None
        return Delivery(site=label, reply=None, missing=why, request=earlier, bytes_down=self.down)


@dataclass(slots=True)
class GridTransport:
    """Transport of requests to Flower's nodes (see ``server/transport/interface.py``)."""

    grid: Grid
    expected: int = 1
    """Nodes to wait for before the first message."""
    patience: float = 60.0
    """Longest wait for them, seconds; a site that is away later costs no waiting of its own."""
    poll: float = 0.1
    """Pause between two looks for replies, seconds."""
    codec: PlainCodec | EnvelopeCodec = field(default_factory=PlainCodec)
    """Codec that turns messages into Flower's records: in plain, or signed and encrypted."""
    resends: int = 0
    """Times that a request is sent again to a site whose node or agent failed, in one phase."""
    pause: float = 15.0
    """Pause before a request is sent again, seconds."""
    memory: Path | None = None
    """File that keeps ``nodes`` over a restart, as a busy node does not say its name."""
    nodes: dict[str, int] = field(default_factory=dict)
    """Site → node id, learned at join."""
    _asked: dict[str, int] = field(default_factory=dict)
    """Message id → node that was asked for its name."""
    _names: dict[int, str] = field(default_factory=dict)
    """Node → the site that it says it is."""
    _met: bool = False
    _look: float = 0.0

    def exchange(
        self,
        request: messages.Request,
        sites: Sequence[str],
        *,
        deadline: float,
        earlier: Earlier | None = None,
    ) -> Iterator[Delivery]:
        """Send to the named sites and yield as they answer.

        Without names, send to every node, or to every pinned member where messages are signed.

        Raises:
            TransportError: no site was named, and fewer nodes than expected came up in time.
        """
        began = time.monotonic()
        sites = sites or self.codec.members
        targets: list[tuple[str, int | None]]
        if sites:
            self._remember()
            targets = [(site, self.nodes.get(site)) for site in sites]
        else:
            nodes = wait_for_nodes(
                self.grid, expected=self.expected, patience=self.patience, poll=self.poll
            )
            targets = [("", node) for node in nodes]
        talks = [
            _Talk(
                site=site,
                node=node,
                todo=[*(earlier or {}).get(site, ()), request],
                again=self.resends,
            )
            for site, node in targets
        ]
        yield from self._converse(talks, began, deadline)
        self._met = True
        if self.memory is not None and sites:
            write_json(self.memory, self.nodes)

    def _converse(
        self, talks: Sequence[_Talk], began: float, deadline: float
    ) -> Iterator[Delivery]:
        """Send due requests and take replies, until all are done or the time is up."""
        end = began + deadline
        sought = began + (self.pause if self._met else self.patience)
        idle, waiting = list(talks), dict[str, _Talk]()
        while (idle or waiting) and (now := time.monotonic()) < end:
            if self._unlocated(idle):
                self._ask_names(now, end)
            yield from self._send(idle, waiting, end)
            ids = [*waiting, *self._asked]
            for reply in self.grid.pull_messages(ids) if ids else ():
                known = reply.metadata.reply_to_message_id
                if known in waiting:
                    yield from self._take_reply(waiting.pop(known), reply, idle)
                elif known in self._asked:
                    self._note_name(self._asked.pop(known), reply)
            if now >= sought and not waiting and len(self._unlocated(idle)) == len(idle):
                break
            time.sleep(self.poll if idle or waiting else 0.0)
        for talk in (*idle, *waiting.values()):
            lost = talk.site and talk.site not in self.nodes
            why = "no reachable node is this site" if lost else f"no answer within {deadline:.0f} s"
            yield talk.silent(f"{why} (before: {talk.why})" if talk.why else why)

    def _unlocated(self, idle: Sequence[_Talk]) -> list[_Talk]:
        """Return the talks with sites whose node is not known."""
        return [talk for talk in idle if talk.site and talk.site not in self.nodes]

    def _send(self, idle: list[_Talk], waiting: dict[str, _Talk], end: float) -> Iterator[Delivery]:
        """Send every request that is due and whose node is known."""
        lost, now = self._unlocated(idle), time.monotonic()
        for talk in [talk for talk in idle if talk.due <= now and talk not in lost]:
            idle.remove(talk)
            talk.node = self.nodes[talk.site] if talk.site else talk.node
            if message := self._post(talk, end):
                waiting[message] = talk
            else:
                yield from self._failed(talk, "Flower takes no message for its node", idle)

    def _post(self, talk: _Talk, end: float) -> str:
        """Send the next request and return the message's id, "" where Flower refuses it."""
        request = talk.todo[0]
        content = self.codec.request(request, talk.site)
        talk.down += content_bytes(content)
        group = f"{request.header.phase}-{request.header.round}"
        return self._push(content, talk.node or 0, CURATION, end=end, group=group)

    def _push(self, content: RecordDict, node: int, kind: str, *, end: float, group: str) -> str:
        left = max(end - time.monotonic(), 1.0)
        message = Message(content, node, kind, ttl=left, group_id=group)
        return next((str(i) for i in self.grid.push_messages([message]) if i), "")

    def _take_reply(self, talk: _Talk, reply: Message, idle: list[_Talk]) -> Iterator[Delivery]:
        """Take a reply; after a failure ask again, while resends are left."""
        if reply.has_error():
            why = f"Flower's error {reply.error.code}: {(reply.error.reason or '')[:200]}"
            yield from self._failed(talk, why, idle)
            return
        up = content_bytes(reply.content)
        try:
            said = self.codec.reply(reply.content, talk.site)
            label = self._name(talk.node or 0, talk.site, said.site)
        except CurationError as error:
            why = f"its message is refused: {error}"
            yield from (replace(d, bytes_up=up) for d in self._failed(talk, why, idle))
            return
        answered = talk.todo.pop(0)
        made_up = answered if talk.todo else None
        yield Delivery(site=label, reply=said, request=made_up, bytes_down=talk.down, bytes_up=up)
        if talk.todo and not isinstance(said, messages.Refusal):
            talk.down, talk.again = 0, self.resends
            idle.append(talk)

    def _failed(self, talk: _Talk, why: str, idle: list[_Talk]) -> Iterator[Delivery]:
        """Send again after a pause; without resends left, deliver the failure."""
        if talk.again > 0:
            logger.warning("site %s is asked again in %.0f s: %s", talk.site, self.pause, why)
            talk.why, talk.again, talk.due = why, talk.again - 1, time.monotonic() + self.pause
            idle.append(talk)
            others = [n for n, name in self._names.items() if name == talk.site and n != talk.node]
            if others:
                self.nodes[talk.site] = others[0]
            self._prune()
        else:
            yield talk.silent(why)

    def _name(self, node: int, expected: str, said: str) -> str:
        """Return the site behind a node: learned at join, checked ever after."""
        if expected:
            if said not in {expected, ""}:
                message = f"it speaks as site {said!r}, but joined as {expected!r}"
                raise ProtocolError(message)
            return expected
        if not said:
            return f"node {node}"
        if self.nodes.setdefault(said, node) != node:
            message = f"it claims the name {said!r}, which another node joined with"
            raise ProtocolError(message)
        return said

    def _remember(self) -> None:
        """Load the nodes that an earlier process knew, as far as they are still there."""
        if not self.nodes and self.memory is not None and self.memory.exists():
            self.nodes = json.loads(self.memory.read_text(encoding="utf-8"))
        if self.nodes:
            self._prune()

    def _prune(self) -> set[int]:
        present = set(self.grid.get_node_ids())
        self.nodes = {site: node for site, node in self.nodes.items() if node in present}
        return present

    def _ask_names(self, now: float, end: float) -> None:
        """Ask unknown nodes which site they are, at most once a second."""
        if now < self._look:
            return
        self._look = now + min(1.0, self.pause)
        strangers = self._prune() - set(self._names) - set(self._asked.values())
        for node, name in self._names.items():
            self.nodes.setdefault(name, node)
        self._prune()
        content = RecordDict({"identity": ConfigRecord()})
        for node in sorted(strangers):
            if message := self._push(content, node, IDENTITY, end=end, group="identity"):
                self._asked[message] = node

    def _note_name(self, node: int, reply: Message) -> None:
        """Note which site a node says it is: a hint for routing, the signature is the proof."""
        name = ""
        if not reply.has_error() and "identity" in reply.content.config_records:
            name = str(reply.content.config_records["identity"].get("site", ""))
        if not name:
            logger.warning("node %d does not say which site it is", node)
            return
        self._names[node] = name
        if self.nodes.setdefault(name, node) != node:
            logger.warning("node %d claims the name %r of another node", node, name)


def wait_for_nodes(
    grid: Grid, *, expected: int, patience: float, poll: float = 0.1
) -> tuple[int, ...]:
    """Return the ids of all nodes, in ascending order, once at least ``expected`` are there.

    Raises:
        TransportError: fewer came up within ``patience`` seconds.
    """
    end = time.monotonic() + patience
    while True:
        nodes = tuple(sorted(grid.get_node_ids()))
        if len(nodes) >= max(expected, 1):
            return nodes
        if time.monotonic() >= end:
            message = (
                f"{len(nodes)} of at least {expected} nodes came up within {patience:.0f} s; start "
                "the SuperNodes, in a simulation with --federation-config "
                f"num-supernodes={expected}, or lower run.minimum_sites"
            )
            raise TransportError(message)
        time.sleep(poll)
