"""Sign requests and encrypt replies between a coordinator and a site's agent.

A coordinator signs each request with Ed25519 (RFC 8032); a site encrypts each reply to the
coordinator's X25519 key by HPKE (RFC 9180, base mode: X25519, HKDF-SHA256, AES-256-GCM) and signs
it with its own Ed25519 key. The signature covers the *stamp*: who speaks to whom, in which run and
phase, under which sequence number, and the SHA-256 of the payload. Whoever carries an envelope
(Flower, a bundle that Flower ships, a proxy) can drop it, and can read a request, which every site
gets; but it can neither make nor change one, nor read a reply.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from fedwinnow.curation.errors import ProtocolError
from fedwinnow.curation.protocol.keys import PrivateKey, PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """Signed description of an envelope: sender, site, run, phase, sequence number, payload."""

    sender: str
    """Fingerprint of the key that signs."""
    site: str
    """The site that a request is for, or that a reply comes from."""
    run: str
    phase: str
    sequence: int
    """Of a request: greater than in every earlier one. Of a reply: that of its request."""
    digest: str
    """SHA-256 of the payload as it travels (of a reply: of the ciphertext), hexadecimal."""
    size: int
    """Bytes of the payload as it travels."""
    ledger: str = ""
    """Of a reply: head of the site's egress ledger after it was entered there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A stamp as the text that was signed, its signature, and the payload."""

    stamp: bytes
    signature: bytes
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsignedEnvelope:
    """A payload still to be signed, with its key: a stream may be hashed while it travels."""

    key: PrivateKey
    payload: bytes
    words: Mapping[str, typing.Any]
    """The stamp's other fields."""

    def signed(self, digest: str = "") -> Envelope:
        """Sign the envelope; ``digest`` is the payload's SHA-256 if the caller has it already."""
        stamp = Stamp(
            sender=self.key.public.fingerprint,
            digest=digest or hashlib.sha256(self.payload).hexdigest(),
            size=len(self.payload),
            **self.words,
        )
        text = json.dumps(dataclasses.asdict(stamp), sort_keys=True, ensure_ascii=False).encode()
        signature = Ed25519PrivateKey.from_private_bytes(self.key.signing).sign(text)
        return Envelope(stamp=text, signature=signature, payload=self.payload)


def sign(key: PrivateKey, payload: bytes, **words: typing.Any) -> Envelope:  # noqa: ANN401 - fields of Stamp
    """Sign a payload as it travels into an envelope; ``words`` are the stamp's other fields."""
    return UnsignedEnvelope(key=key, payload=payload, words=words).signed()


def verify(envelope: Envelope, key: PublicKey) -> Stamp:
    """Verify an envelope's signature and payload, and return its stamp.

    Raises:
        ProtocolError: another key signed it, or the stamp or the payload was changed or cut.
    """
    stamp = verify_stamp(envelope.stamp, envelope.signature, key)
    found = hashlib.sha256(envelope.payload).hexdigest()
    if (stamp.size, stamp.digest) != (len(envelope.payload), found):
        message = (
            f"payload: expected {stamp.size} bytes, SHA-256 {stamp.digest[:12]}, "
            f"got {len(envelope.payload)} bytes, {found[:12]}; send it again"
        )
        raise ProtocolError(message)
    return stamp


def verify_stamp(text: bytes, signature: bytes, key: PublicKey) -> Stamp:
    """Verify a stamp's signature; its payload is still to be compared with ``digest``.

    Raises:
        ProtocolError: another key signed it, or it is not a stamp.
    """
    try:
        Ed25519PublicKey.from_public_bytes(key.verifying).verify(signature, text)
    except InvalidSignature as error:
        message = f"signature is not by the pinned key {key.fingerprint}; nothing was read"
        raise ProtocolError(message) from error
    try:
        stamp = Stamp(**json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        message = "stamp is signed but not one of this version; upgrade the older side"
        raise ProtocolError(message) from error
    hints = typing.get_type_hints(Stamp)
    if stamp.sender != key.fingerprint or any(
        type(getattr(stamp, name)) is not hint for name, hint in hints.items()
    ):
        message = f"stamp is signed by {key.fingerprint} but names {stamp.sender!r}; not accepted"
        raise ProtocolError(message)
    return stamp


def encrypt(payload: bytes, reader: PublicKey) -> bytes:
    """Encrypt a payload to a key's owner."""
    return _suite().encrypt(payload, X25519PublicKey.from_public_bytes(reader.encrypting))


def decrypt(payload: bytes, key: PrivateKey) -> bytes:
    """Decrypt what :func:`encrypt` made.

    Raises:
        ProtocolError: it was made for another key, or was changed or cut.
    """
    try:
        return _suite().decrypt(payload, X25519PrivateKey.from_private_bytes(key.opening))
    except (InvalidTag, ValueError) as error:
        message = f"{len(payload)} bytes cannot be opened with key {key.public.fingerprint}"
        raise ProtocolError(message) from error


def _suite() -> Suite:
    return Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
