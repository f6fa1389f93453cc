"""Run a federation of site agents on this machine without Flower: envelopes over Unix sockets.

Boundary, policy, ledger and encryption are those of a deployment, at a tenth of its cost. A
coordinator rehearses a run this way, and the fault tests kill these agents.
"""

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fedwinnow.client.agent.relay import relay_envelope
from fedwinnow.curation.errors import CurationError
from fedwinnow.curation.protocol.envelope import Stamp, verify_stamp
from fedwinnow.curation.protocol.messages import Request
from fedwinnow.curation.protocol.replies import Refusal
from fedwinnow.server.transport.coordinator_envelopes import CoordinatorEnvelopes
from fedwinnow.server.transport.interface import Delivery, Earlier


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAddress:
    """Socket of a site's agent, and the file with its token."""

    socket: str
    token: str


@dataclass(slots=True, kw_only=True)
class SocketTransport:
    """Transport to agents (a :class:`fedwinnow.server.transport.interface.Transport`)."""

    envelopes: CoordinatorEnvelopes
    addresses: Mapping[str, AgentAddress]

    def exchange(
        self,
        request: Request,
        sites: Sequence[str],
        *,
        deadline: float,
        earlier: Earlier | None = None,
    ) -> Iterator[Delivery]:
        """Send to the named sites (none named: to all) at once; yield deliveries as they come."""
        names = sorted(sites or self.addresses)
        came: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        end = time.monotonic() + deadline

        def ask(site: str) -> None:
            for missed in (earlier or {}).get(site, ()):
                made_up = self._ask(missed, site, end - time.monotonic())
                came.put(replace(made_up, request=missed))
                if made_up.reply is None or isinstance(made_up.reply, Refusal):
                    return
            came.put(self._ask(request, site, end - time.monotonic()))

        for site in names:
            threading.Thread(target=ask, args=(site,), daemon=True).start()
        waiting = set(names)
        while waiting:
            try:
                delivery = came.get(timeout=max(end - time.monotonic(), 0.0))
            except queue.Empty:
                break
            ended = delivery.reply is None or isinstance(delivery.reply, Refusal)
            if delivery.request is None or ended:
                waiting.discard(delivery.site)
            yield delivery
        for site in sorted(waiting):
            yield Delivery(site=site, reply=None, missing=f"no answer within {deadline:.0f} s")

    def _ask(self, request: Request, site: str, deadline: float) -> Delivery:
        address = self.addresses.get(site)
        if address is None:
            return Delivery(site=site, reply=None, missing="no agent is known for it")
        down = up = 0
        try:
            envelope = self.envelopes.envelope(request, site)
            sent: Stamp = verify_stamp(
                envelope.stamp, envelope.signature, self.envelopes.key.public
            )
            down = len(envelope.payload)
            answer = relay_envelope(envelope, address.socket, address.token, timeout=deadline)
            up = len(answer.payload)
            reply = self.envelopes.reply(answer, sent)
        except CurationError as error:
            why = f"{type(error).__name__}: {error}"
            return Delivery(site=site, reply=None, missing=why, bytes_down=down, bytes_up=up)
        return Delivery(site=site, reply=reply, bytes_down=down, bytes_up=up)
