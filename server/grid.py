"""Our messages over Flower's Grid: push, then take replies as they arrive, until the deadline.

Flower knows nodes by random ids, the protocol knows sites by name. At join every reachable node is
asked and its reply says its name; later requests go to the named sites only. Every message carries
the deadline as its time to live, so an answer that comes too late is dropped by Flower itself.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedwinnow.curation import messages
from fedwinnow.curation.errors import CurationError, ProtocolError, TransportError
from fedwinnow.curation.records import size_of
from fedwinnow.server.codec import Plain, Sealed
from fedwinnow.server.driver import Delivery

logger = logging.getLogger(__name__)

CURATION, IDENTITY = "query.curation", "query.identity"
"""Message types that :mod:`fedwinnow.client.app` answers."""


@dataclass(slots=True)
class GridTransport:
    """Carries requests to Flower's nodes (a :class:`fedwinnow.server.driver.Transport`)."""

    grid: Grid
    expected: int = 1
    """Nodes to wait for before the first message."""
    patience: float = 60.0
    """Longest wait for them, seconds."""
    poll: float = 0.1
    """Pause between two looks for replies, seconds."""
    codec: Plain | Sealed = field(default_factory=Plain)
    """How messages become Flower's records: in plain, or signed and sealed."""
    nodes: dict[str, int] = field(default_factory=dict)
    """Site → node id, learned at join."""

    def exchange(
        self, request: messages.Request, sites: Sequence[str], *, deadline: float
    ) -> Iterator[Delivery]:
        """Send to the named sites and yield as they answer.

        None named: to every node, or to every pinned member where messages are signed.

        Raises:
            TransportError: fewer nodes than expected came up in time.
        """
        end = time.monotonic() + deadline
        sites = sites or self.codec.members
        if sites:
            self._locate(sites, end)
        for site in sites:
            if site not in self.nodes:
                yield Delivery(site=site, reply=None, missing="no reachable node is this site")
        if sites:
            targets = {self.nodes[site]: site for site in sites if site in self.nodes}
        else:
            targets = dict.fromkeys(self._reachable(), "")
        contents = {node: self.codec.request(request, site) for node, site in targets.items()}
        left = max(end - time.monotonic(), 1.0)
        group = f"{request.header.phase}-{request.header.round}"
        posted = self._push(contents, CURATION, ttl=left, group=group)
        for node, reply in self._replies(posted, targets, end):
            yield self._delivery(node, targets[node], reply, size_of(contents[node]), deadline)

    def _push(
        self, contents: Mapping[int, RecordDict], kind: str, *, ttl: float, group: str
    ) -> dict[str, int]:
        """Message id → node; one by one, as Flower leaves out the ids of refused messages."""
        posted = {}
        for node, content in contents.items():
            message = Message(content, node, kind, ttl=ttl, group_id=group)
            posted.update({str(i): node for i in self.grid.push_messages([message]) if i})
        return posted

    def _replies(
        self, posted: Mapping[str, int], nodes: Mapping[int, str], end: float
    ) -> Iterator[tuple[int, Message | None]]:
        """(node, reply) as they arrive; at the end (node, None) for those that did not answer."""
        waiting = dict(posted)
        while waiting and time.monotonic() < end:
            for reply in self.grid.pull_messages(list(waiting)):
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    yield node, reply
            if waiting:
                time.sleep(self.poll)
        silent = set(waiting.values()) | (set(nodes) - set(posted.values()))
        for node in sorted(silent):
            yield node, None

    def _delivery(
        self, node: int, site: str, reply: Message | None, down: int, deadline: float
    ) -> Delivery:
        label = site or f"node {node}"
        if reply is None:
            why = f"no answer within {deadline:.0f} s"
            return Delivery(site=label, reply=None, missing=why, bytes_down=down)
        if reply.has_error():
            why = f"Flower's error {reply.error.code}: {(reply.error.reason or '')[:200]}"
            return Delivery(site=label, reply=None, missing=why, bytes_down=down)
        up = size_of(reply.content)
        try:
            said = self.codec.reply(reply.content, site)
            label = self._name(node, site, said.site)
        except CurationError as error:
            why = f"its message is refused: {error}"
            return Delivery(site=label, reply=None, missing=why, bytes_down=down, bytes_up=up)
        return Delivery(site=label, reply=said, bytes_down=down, bytes_up=up)

    def _name(self, node: int, expected: str, said: str) -> str:
        """The site behind a node; learned at join, checked ever after."""
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

    def _locate(self, sites: Sequence[str], end: float) -> None:
        """Learn which node is which site: a resumed run knows none, and a site may come back anew.

        The first time waits for every named site, ``patience`` seconds at most; later a site that
        is away costs no waiting, as long as enough are there.
        """
        first = not self.nodes
        now = time.monotonic()
        until = now + min(self.patience, (end - now) / 2)  # half of the phase is for the answers
        asked: set[int] = set()
        while True:
            present = set(self._reachable())
            self.nodes = {site: node for site, node in self.nodes.items() if node in present}
            strangers = present - asked - set(self.nodes.values())
            complete = set(sites) <= set(self.nodes)
            if complete or (not strangers and (not first or time.monotonic() >= until)):
                return
            if strangers:
                self._introduce(strangers, until)
                asked |= strangers
            else:
                time.sleep(self.poll)

    def _introduce(self, strangers: AbstractSet[int], end: float) -> None:
        """Ask nodes for their names."""
        left = max(end - time.monotonic(), 1.0)
        content = RecordDict({"identity": ConfigRecord()})
        nodes = dict.fromkeys(sorted(strangers), "")
        contents = dict.fromkeys(nodes, content)
        posted = self._push(contents, IDENTITY, ttl=left, group="identity")
        for node, reply in self._replies(posted, nodes, time.monotonic() + left):
            if reply is None or reply.has_error():
                logger.warning("node %d does not say which site it is", node)
                continue
            name = str(reply.content.config_records["identity"]["site"])
            if name and self.nodes.setdefault(name, node) != node:
                logger.warning("node %d claims the name %r of another node", node, name)

    def _reachable(self) -> tuple[int, ...]:
        return reachable(self.grid, expected=self.expected, patience=self.patience, poll=self.poll)


def reachable(grid: Grid, *, expected: int, patience: float, poll: float = 0.1) -> tuple[int, ...]:
    """Ids of all nodes, in ascending order, once at least ``expected`` are there.

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
