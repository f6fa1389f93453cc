"""Write requests as Flower's records and read replies: in plain, or signed and encrypted.

Plain is for simulations. Where a node of a deployment cannot reach its agent, its shim says so in a
record of its own, ``shim``.
"""

import typing
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import ArrayRecord, RecordDict

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.errors import ProtocolError, TransportError
from fedwinnow.curation.protocol import messages
from fedwinnow.curation.protocol.envelope import Stamp
from fedwinnow.curation.protocol.flower_messages import read_message, to_records
from fedwinnow.curation.protocol.flower_records import (
    envelope_records,
    payload_record,
    read_envelope,
)
from fedwinnow.server.transport.coordinator_envelopes import CoordinatorEnvelopes


@dataclass(slots=True)
class PlainCodec:
    """Codec of plain messages: text and named arrays."""

    members: tuple[str, ...] = ()
    """Pinned sites: none, so at join every node is asked."""
    _last: tuple[messages.Request, RecordDict] | None = None

    def request(self, request: messages.Request, site: str) -> RecordDict:  # noqa: ARG002 - every codec's shape
        """Return a request as records, made once for all sites."""
        if self._last is None or self._last[0] is not request:
            self._last = (request, to_records(request))
        return self._last[1]

    def reply(self, content: RecordDict, site: str) -> messages.Reply:  # noqa: ARG002 - every codec's shape
        """Return the reply in records.

        Raises:
            ProtocolError: the records hold no reply.
        """
        reply = read_message(content)
        if not isinstance(reply, typing.get_args(messages.Reply)):
            message = f"a {type(reply).__name__} came where a reply was expected"
            raise ProtocolError(message)
        return typing.cast("messages.Reply", reply)


@dataclass(slots=True)
class EnvelopeCodec:
    """Codec of messages in envelopes: requests signed for one site, replies encrypted by it."""

    envelopes: CoordinatorEnvelopes
    _sent: dict[str, Stamp] = field(default_factory=dict)
    _payload: tuple[bytes, ArrayRecord] | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """Return the pinned sites, in order of name."""
        return tuple(sorted(self.envelopes.members))

    def request(self, request: messages.Request, site: str) -> RecordDict:
        """Return a request as records, signed for one site; all sites share one payload."""
        envelope = self.envelopes.envelope(request, site)
        self._sent[site] = self.envelopes.sent(envelope)
        if self._payload is None or self._payload[0] is not envelope.payload:
            self._payload = (envelope.payload, payload_record(envelope.payload))
        return envelope_records(envelope, self._payload[1])

    def reply(self, content: RecordDict, site: str) -> messages.Reply:
        """Open and check the reply in records.

        Raises:
            ProtocolError: it is not the site's, not for this request, or not a reply.
            TransportError: the site's node could not reach its agent.
        """
        if "shim" in content.config_records:
            why = str(content.config_records["shim"].get("error", ""))[:200]
            message = f"its node could not reach its agent: {why}"
            raise TransportError(message)
        return self.envelopes.reply(read_envelope(content), self._sent[site])


def codec_of(config: RunConfig, folder: Path) -> PlainCodec | EnvelopeCodec:
    """Return a run's codec: encrypted where a coordinator's key is set; ``folder`` is the run's.

    Raises:
        ConfigError: a key is missing or malformed, or no member is pinned.
    """
    return (
        EnvelopeCodec(CoordinatorEnvelopes.open(config, folder))
        if config.coordinator.key
        else PlainCodec()
    )
