"""A guarded site asked with a whole envelope, without an agent's stream."""

import hashlib

from fedwinnow.client.boundary.guarded_site import GuardedSite
from fedwinnow.curation.errors import UnauthorisedError
from fedwinnow.curation.protocol.envelope import Envelope


def answer_envelope(envelope: Envelope, boundary: GuardedSite) -> Envelope:
    """Admit and answer a whole envelope, as the agent does in a stream.

    Raises:
        UnauthorisedError: it may not be answered at all, or its payload is not the signed one.
    """
    stamp = boundary.admit(envelope.stamp, envelope.signature)
    if (len(envelope.payload), hashlib.sha256(envelope.payload).hexdigest()) != (
        stamp.size,
        stamp.digest,
    ):
        message = "payload is not the one that was signed"
        raise UnauthorisedError(message)
    return boundary.answer(stamp, envelope.payload).signed()
