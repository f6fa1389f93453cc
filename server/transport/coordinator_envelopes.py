"""Sign the coordinator's requests to each site, and open and check the site's replies.

Sequence numbers rise over restarts: the next one is max(time in nanoseconds, last + 1), and the
last is on the disk before a request leaves. A reply counts only if the member's own pinned key
signed it, for this run and phase, under the sequence number of the request that it answers.
"""

import threading
import time
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedwinnow.curation.atomic_files import write_atomically
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.errors import ConfigError, ProtocolError
from fedwinnow.curation.protocol import messages, wire
from fedwinnow.curation.protocol.envelope import (
    Envelope,
    Stamp,
    decrypt,
    sign,
    verify,
    verify_stamp,
)
from fedwinnow.curation.protocol.keys import PrivateKey, PublicKey


@dataclass(slots=True, kw_only=True)
class CoordinatorEnvelopes:
    """The coordinator's end of envelopes: its key, the members' keys, and a sequence number."""

    key: PrivateKey
    members: Mapping[str, PublicKey]
    """Site → the key that its replies must be signed with."""
    sequence_file: Path
    ledgers: dict[str, str] = field(default_factory=dict)
    """Site → head of its egress ledger, as its last reply said."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _encoded: tuple[messages.Request, bytes] | None = None

    @classmethod
    def open(cls, config: RunConfig, folder: Path) -> "CoordinatorEnvelopes":
        """Read the keys of a deployed run; ``folder`` is the run's.

        Raises:
            ConfigError: the key file or a member's key is missing or malformed.
        """
        if not config.members:
            message = (
                "members: expected a [[members]] entry with name and key for every site, got "
                "none; ask each site for the line that `fedwinnow site check` prints"
            )
            raise ConfigError(message)
        return cls(
            key=PrivateKey.load(Path(config.coordinator.key)),
            members={
                member.name: PublicKey.parse(member.key, f"members.{member.name}.key")
                for member in config.members
            },
            sequence_file=folder / "state" / "sequence",
        )

    def envelope(self, request: messages.Request, site: str) -> Envelope:
        """Sign a request for one site.

        Raises:
            OutputError: the sequence number cannot be written down.
        """
        return sign(
            self.key,
            self._payload(request),
            site=site,
            run=request.header.run,
            phase=request.header.phase,
            sequence=self._next(),
        )

    def reply(self, envelope: Envelope, sent: Stamp) -> messages.Reply:
        """Open and check the reply to the request with the stamp ``sent``.

        Raises:
            ProtocolError: not signed by the member, not for this request, or not a reply.
            NonFiniteError: a number in it is a NaN or an infinity.
        """
        key = self.members.get(sent.site)
        if key is None:
            message = f"site {sent.site!r} is not among the pinned [[members]]"
            raise ProtocolError(message)
        stamp = verify(envelope, key)
        for name in ("site", "run", "phase", "sequence"):
            came, expected = getattr(stamp, name), getattr(sent, name)
            if came != expected:
                message = f"reply is stamped with {name} {came!r}, the request with {expected!r}"
                raise ProtocolError(message)
        reply = wire.decode(decrypt(envelope.payload, self.key))
        if not isinstance(reply, typing.get_args(messages.Reply)):
            message = f"a {type(reply).__name__} came where a reply was expected"
            raise ProtocolError(message)
        reply = typing.cast("messages.Reply", reply)
        if reply.site != sent.site:
            message = f"reply speaks as site {reply.site!r}, it was signed by {sent.site!r}"
            raise ProtocolError(message)
        self.ledgers[sent.site] = stamp.ledger
        return reply

    def sent(self, envelope: Envelope) -> Stamp:
        """Return the stamp of an envelope signed here; the reply must repeat it."""
        return verify_stamp(envelope.stamp, envelope.signature, self.key.public)

    def _payload(self, request: messages.Request) -> bytes:
        """Encode the request; every site gets the same object, so that it is carried once."""
        kept = self._encoded  # taken once, as another thread may put its own there
        if kept is None or kept[0] is not request:
            kept = self._encoded = (request, wire.encode(request))
        return kept[1]

    def _next(self) -> int:
        with self._lock:
            try:
                last = int(self.sequence_file.read_text(encoding="ascii"))
            except (
                OSError,
                ValueError,
            ):  # none that can be read: the time is past every earlier one
                last = 0
            number = max(time.time_ns(), last + 1)
            write_atomically(self.sequence_file, b"%d\n" % number)
        return number
