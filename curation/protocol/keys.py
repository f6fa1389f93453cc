"""Make, load and save a party's keys: Ed25519 to sign, X25519 to encrypt, one line each."""

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedwinnow.curation.atomic_files import write_private
from fedwinnow.curation.errors import ConfigError

_PUBLIC, _PRIVATE = "fedwinnow-key-1:", "fedwinnow-private-1:"


_SEED = 32
"""Bytes of an Ed25519 or X25519 key, private or public."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A party's pinned identity: one key that verifies, one that encrypts."""

    verifying: bytes
    encrypting: bytes

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
        """Return the one-line form, to be pinned in a configuration."""
        return _PUBLIC + base64.urlsafe_b64encode(self.verifying + self.encrypting).decode()

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of both keys: 32 hexadecimal digits, to be compared by phone."""
        return hashlib.sha256(self.verifying + self.encrypting).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A party's own keys; never printed, never sent."""

    signing: bytes = field(repr=False)
    opening: bytes = field(repr=False)

    def __repr__(self) -> str:
        """Return the fingerprint, so that no log ever holds a key."""
        return f"PrivateKey({self.public.fingerprint})"

    @classmethod
    def new(cls) -> "PrivateKey":
        """Make fresh keys from the system's random source."""
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
        """Return the public keys, which others pin."""
        signing = Ed25519PrivateKey.from_private_bytes(self.signing).public_key()
        opening = X25519PrivateKey.from_private_bytes(self.opening).public_key()
        return PublicKey(signing.public_bytes_raw(), opening.public_bytes_raw())


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
