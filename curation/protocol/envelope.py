"""Signed requests and sealed replies: what travels between a coordinator and a site's agent.

A coordinator signs each request with Ed25519 (RFC 8032); a site encrypts each reply to the
coordinator's X25519 key by HPKE (RFC 9180, base mode: X25519, HKDF-SHA256, AES-256-GCM) and signs
it with its own Ed25519 key. What is signed is the *stamp*: who speaks to whom, in which run and
phase, under which sequence number, and the SHA-256 of the payload. Whoever carries an envelope
(Flower, a bundle that Flower ships, a proxy) can drop it, and read a request, which every
site gets; but neither make nor change one, nor read a reply.
"""

import base64
import binascii
import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from fedwinnow.curation.atomic_files import write_private
from fedwinnow.curation.errors import ConfigError, ProtocolError

_PUBLIC, _PRIVATE = "fedwinnow-key-1:", "fedwinnow-private-1:"
_SEED = 32
"""Bytes of an Ed25519 or X25519 key, private or public."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What an envelope is, in the words that are signed."""

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


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A party's pinned identity: one key that verifies, one that encrypts."""

    verifying: bytes
    sealing: bytes

    @classmethod
    def parse(cls, text: str, setting: str = "key") -> "PublicKey":
        """Read the one-line form ``fedwinnow-key-1:…``.

        Raises:
            ConfigError: it is not such a line; ``setting`` names where it stands.
        """
        both = _decode(text, _PUBLIC, setting)
        return cls(both[:_SEED], both[_SEED:])

    @property
    def text(self) -> str:
        """The one-line form, to be pinned in a configuration."""
        return _PUBLIC + base64.urlsafe_b64encode(self.verifying + self.sealing).decode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of both keys: 32 hexadecimal digits, to be compared by phone."""
        return hashlib.sha256(self.verifying + self.sealing).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A party's own keys; never printed, never sent."""

    signing: bytes = field(repr=False)
    opening: bytes = field(repr=False)

    def __repr__(self) -> str:
        """The fingerprint, so that no log ever holds a key."""
        return f"PrivateKey({self.public.fingerprint})"

    @classmethod
    def new(cls) -> "PrivateKey":
        """Fresh keys from the system's random source."""
        signing, opening = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
        return cls(signing.private_bytes_raw(), opening.private_bytes_raw())

    @classmethod
    def load(cls, file: Path) -> "PrivateKey":
        """Read a key file that :meth:`save` wrote.

        Raises:
            ConfigError: it is missing, readable by others, or no key file.
        """
        try:
            mode = file.stat().st_mode & 0o077
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            message = (
                f"{file}: expected a private key ({type(error).__name__}); make one with "
                "`fedwinnow keys`, and run as its owner"
            )
            raise ConfigError(message) from error
        if mode:
            message = f"{file}: a private key must be its owner's alone; run chmod 600 {file}"
            raise ConfigError(message)
        both = _decode(text.strip(), _PRIVATE, str(file))
        return cls(both[:_SEED], both[_SEED:])

    def save(self, file: Path) -> None:
        """Write the key file, readable by its owner only.

        Raises:
            OutputError: the folder cannot be written.
        """
        text = _PRIVATE + base64.urlsafe_b64encode(self.signing + self.opening).decode()
        write_private(file, text.encode() + b"\n")

    @property
    def public(self) -> PublicKey:
        """What others pin."""
        signing = Ed25519PrivateKey.from_private_bytes(self.signing).public_key()
        opening = X25519PrivateKey.from_private_bytes(self.opening).public_key()
        return PublicKey(signing.public_bytes_raw(), opening.public_bytes_raw())


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A payload that its key's owner is about to sign: a stream may be hashed while it travels."""

    key: PrivateKey
    payload: bytes
    words: Mapping[str, typing.Any]
    """The stamp's other fields."""

    def signed(self, digest: str = "") -> Envelope:
        """The envelope; ``digest`` is the payload's SHA-256 where the caller has it already."""
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
    """An envelope around a payload as it travels; ``words`` are the stamp's other fields."""
    return Draft(key=key, payload=payload, words=words).signed()


def verified(envelope: Envelope, key: PublicKey) -> Stamp:
    """The stamp of an envelope whose signature and payload are whole.

    Raises:
        ProtocolError: another key signed it, or the stamp or the payload was changed or cut.
    """
    stamp = verified_stamp(envelope.stamp, envelope.signature, key)
    found = hashlib.sha256(envelope.payload).hexdigest()
    if (stamp.size, stamp.digest) != (len(envelope.payload), found):
        message = (
            f"payload: expected {stamp.size} bytes, SHA-256 {stamp.digest[:12]}, "
            f"got {len(envelope.payload)} bytes, {found[:12]}; send it again"
        )
        raise ProtocolError(message)
    return stamp


def verified_stamp(text: bytes, signature: bytes, key: PublicKey) -> Stamp:
    """A stamp that the key signed; its payload is still to be compared with ``digest``.

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


def seal(payload: bytes, reader: PublicKey) -> bytes:
    """Encrypt a payload to a key's owner."""
    return _suite().encrypt(payload, X25519PublicKey.from_public_bytes(reader.sealing))


def unseal(payload: bytes, key: PrivateKey) -> bytes:
    """Decrypt what :func:`seal` made.

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


def _decode(text: str, prefix: str, setting: str) -> bytes:
    try:
        both = base64.urlsafe_b64decode(text.removeprefix(prefix).encode())
    except (binascii.Error, ValueError):
        both = b""
    line = prefix + base64.urlsafe_b64encode(both).decode()
    if len(both) != 2 * _SEED or line != text:  # the decoder alone drops what it does not know
        message = (
            f"{setting}: expected a key as printed by `fedwinnow keys` ({prefix}…), got "
            f"{len(text)} characters that are none; copy the whole line"
        )
        raise ConfigError(message)
    return both
