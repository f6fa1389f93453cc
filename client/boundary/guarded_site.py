"""Guard a site's trust boundary: check who asks, what is asked and what leaves, and record it.

Every message passes these steps, in this order: the coordinator's signature, the recipient, a
sequence number never seen before (on disk before anything is computed), the policy on the request,
the charge to the samples (on disk before anything private is computed, and never given back),
:meth:`Site.answer`, the policy on the reply (``client/boundary/release.py``, the one door), the
ledger (on disk before anything leaves), encryption to the coordinator, the site's own signature. A
caller that fails one of the first three gets no reply at all; every other "no" is an encrypted
:class:`Refusal` with its clause.
"""

import logging
import threading
import typing
from dataclasses import dataclass, field
from pathlib import Path

from fedwinnow.client.boundary.policy import Policy
from fedwinnow.client.boundary.release import (
    Released,
    release_refusal,
    release_reply,
    released_bytes,
)
from fedwinnow.client.budget.ledger import Entry, Ledger
from fedwinnow.client.budget.released_datasets import ReleasedDatasets
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.client.runs.refusals import refused_by
from fedwinnow.client.site import Site
from fedwinnow.curation.atomic_files import write_atomically
from fedwinnow.curation.config.site import SiteConfig
from fedwinnow.curation.errors import (
    ConfigError,
    ProtocolError,
    UnauthorisedError,
)
from fedwinnow.curation.protocol import messages, wire
from fedwinnow.curation.protocol.envelope import (
    Stamp,
    UnsignedEnvelope,
    encrypt,
    verify_stamp,
)
from fedwinnow.curation.protocol.keys import PrivateKey, PublicKey
from fedwinnow.curation.protocol.messages import Reply, Request
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.protocol.replies import Refusal

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class GuardedSite:
    """Site behind its signatures, policy and ledger."""

    site: Site
    key: PrivateKey
    """The site's own key, which signs its replies."""
    coordinator: PublicKey
    """Key of the one coordinator whose requests are answered."""
    policy: Policy
    ledger: Ledger
    sequence_file: Path
    """File with the greatest admitted sequence number."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, config: SiteConfig, *, cache: ProcessCache | None = None) -> "GuardedSite":
        """Open key, policy and ledger of a site; create the key at first start.

        Raises:
            ConfigError: no coordinator is pinned, or the key file is not the site's alone.
            OutputError: the work folder cannot be written, or another agent holds the ledger.
        """
        if not config.policy.coordinator:
            message = (
                "policy.coordinator: expected the coordinator's public key, got ''; ask for the "
                "line that `fedwinnow keys` printed there, and compare its fingerprint by phone"
            )
            raise ConfigError(message)
        folder = Path(config.work)
        return cls(
            site=Site(config=config, cache=cache or ProcessCache()),
            key=site_key(Path(config.agent.key)),
            coordinator=PublicKey.parse(config.policy.coordinator, "policy.coordinator"),
            policy=Policy(
                section=config.policy,
                known=ReleasedDatasets(folder=folder / "datasets"),
            ),
            ledger=Ledger.open(folder),
            sequence_file=folder / "sequence",
        )

    def admit(self, stamp: bytes, signature: bytes) -> Stamp:
        """Check the sender, before a byte of the payload is read.

        Raises:
            UnauthorisedError: not signed by the coordinator, for another site, or seen before.
        """
        try:
            found = verify_stamp(stamp, signature, self.coordinator)
        except ProtocolError as error:
            raise UnauthorisedError(str(error)) from error
        if found.site != self.site.name:
            message = f"request is for site {found.site!r}, this is {self.site.name!r}"
            raise UnauthorisedError(message)
        with self._lock:
            last = self._last()
            if found.sequence <= last:
                message = f"sequence {found.sequence} is not above {last}: a replay is refused"
                raise UnauthorisedError(message)
            write_atomically(self.sequence_file, b"%d\n" % found.sequence)
        return found

    def answer(self, stamp: Stamp, payload: bytes) -> UnsignedEnvelope:
        """Answer an admitted request with an encrypted reply, still to be signed.

        Args:
            stamp: What :meth:`admit` returned.
            payload: Bytes of the stamp's size and digest.

        Raises:
            OutputError: the ledger cannot be written; then nothing leaves.
        """
        header = messages.Header(run=stamp.run, phase=stamp.phase)
        try:
            request = self._request(stamp, payload)
            header = request.header
            released = self._decide(request, stamp.digest)
        except Exception as error:  # noqa: BLE001 - logged with the refusal's reference
            released = self._refuse(error, header)
        return self._send(stamp, released)

    def _decide(self, request: Request, digest: str) -> Released:
        """Apply the policy to the request, charge it, compute the reply, apply the policy to it."""
        joining = isinstance(request, messages.JoinRequest)
        run = None if joining else self.site.run_of(request.header.run)
        self.policy.before(request, run, self.ledger, digest)
        run = self.site.join_run(request) if isinstance(request, messages.JoinRequest) else run
        if run is not None:
            recipient = self.coordinator.fingerprint
            self.policy.charge(request, run, self.ledger, digest=digest, recipient=recipient)
        reply = self.site.answer(request, run)
        run = self.site.run_of(request.header.run)
        return release_reply(reply, run, self.policy, self.ledger)

    def _refuse(self, error: Exception, header: messages.Header) -> Released:
        """Return the refusal for an error; in a simulation all is one person's, and all is told."""
        config = self.site.config
        return release_refusal(
            error, header, self.site.name, config.policy, simulation=config.simulation
        )

    def _send(self, stamp: Stamp, released: Released) -> UnsignedEnvelope:
        """Record what leaves in the ledger, and encrypt it."""
        reply, plain = released.reply, released_bytes(released)
        data, anchors = self._origin(reply)
        entry = Entry.of(
            reply,
            plain,
            request=stamp.digest,
            recipient=self.coordinator.fingerprint,
            data=data,
            anchors=anchors,
            passed_on=self._passed_on(reply),
        )
        head = self.ledger.append(entry)
        words = {"site": self.site.name, "run": stamp.run, "phase": stamp.phase}
        return UnsignedEnvelope(
            key=self.key,
            payload=encrypt(plain, self.coordinator),
            words={**words, "sequence": stamp.sequence, "ledger": head},
        )

    def _origin(self, reply: Reply) -> tuple[str, str]:
        """Return the hashes of data set and anchors behind a reply; a refusal has none.

        Where nothing private is behind the reply, there is no data set.
        """
        if isinstance(reply, Refusal):
            return "", ""
        run = self.site.run_of(reply.header.run)
        data = self.policy.budget.data_behind(reply, run)
        return data, run.data.anchors_hash

    def _passed_on(self, reply: Reply) -> str:
        """Return "members" where the terms pass an adapter on for review or judging, else ""."""
        if not isinstance(reply, messages.TrainedAdapter) or reply.adapter is None:
            return ""
        work, header = self.site.run_of(reply.header.run), reply.header
        terms = work.terms
        if header.phase == Phase.TRAIN.value:
            return "members" if terms.guards.anchor_margin > 0 else ""
        last = (header.phase, header.round) == (Phase.WARM_UP.value, terms.warm_up.rounds)
        return "members" if last and work.plugins.reviews_reader else ""

    def _request(self, stamp: Stamp, payload: bytes) -> Request:
        with refused_by("protocol"):
            request = wire.decode(payload)
        if not isinstance(request, typing.get_args(Request)):
            message = f"a {type(request).__name__} came where a request was expected"
            raise ProtocolError(message, clause="protocol")
        request = typing.cast("Request", request)
        said, signed = (request.header.run, request.header.phase), (stamp.run, stamp.phase)
        if said != signed:
            message = f"message speaks of run and phase {said}, its stamp of {signed}"
            raise ProtocolError(message, clause="protocol")
        return request

    def _last(self) -> int:
        try:
            return int(self.sequence_file.read_text(encoding="ascii"))
        except FileNotFoundError:
            return 0
        except ValueError as error:
            message = (
                f"{self.sequence_file}: expected one whole number; restore it from a backup, or "
                "write the time in nanoseconds into it: requests made before then stay refused"
            )
            raise UnauthorisedError(message) from error


def site_key(file: Path) -> PrivateKey:
    """Load the site's own key; create it where there is none.

    Raises:
        ConfigError: the file is readable by others, or no key.
        OutputError: the file cannot be written.
    """
    if not file.exists():
        PrivateKey.new().save(file)
        logger.info("made the site's key %s", file)
    return PrivateKey.load(file)
