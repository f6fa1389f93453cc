"""Envelopes as a stream of frames over gRPC: words first or last, the payload in chunks between.

A request begins with its words: the signature is checked before the payload is read. A reply ends
with them. Words are JSON with base64, chunks are raw; gRPC carries bytes.

No generated stubs: the payload is bytes already, its size is known before it is read, and the
signature is checked before a chunk of it is taken.
"""

import base64
import binascii
import hashlib
import io
import json
import typing
from collections.abc import Iterator
from pathlib import Path

from fedwinnow.curation.errors import ConfigError, ProtocolError
from fedwinnow.curation.protocol.envelope import Envelope, UnsignedEnvelope

HANDLE, STATUS = "/fedwinnow.Agent/Handle", "/fedwinnow.Agent/Status"
"""Paths of the two methods."""
CHUNK = 2**20
"""Bytes of a payload frame at most."""
OPTIONS = (
    ("grpc.max_receive_message_length", 4 * CHUNK),
    ("grpc.max_send_message_length", 4 * CHUNK),
    ("grpc.so_reuseport", 0),
    ("grpc.enable_http_proxy", 0),
)
"""Options of both ends: no frame is larger, and no proxy is asked."""
TOKEN = "fedwinnow-token"  # noqa: S105 - the name of a header
"""Name of the header that carries the token."""
LONGEST_PATH = 100
"""Bytes of a Unix socket's path at most, on every system."""


def write_stamp_frame(stamp: bytes, signature: bytes, size: int) -> bytes:
    """The frame that says what the payload is."""
    both = {"stamp": stamp, "signature": signature}
    tree = {name: base64.b64encode(value).decode() for name, value in both.items()}
    return json.dumps({**tree, "size": size}).encode()


def read_stamp_frame(frame: bytes) -> tuple[bytes, bytes, int]:
    """Stamp, signature and size that :func:`write_stamp_frame` wrote.

    Raises:
        ProtocolError: it is no such frame.
    """
    try:
        tree = json.loads(frame)
        stamp, signature = (
            base64.b64decode(tree[name], validate=True) for name in ("stamp", "signature")
        )
        size = tree["size"]
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        message = "frame is not the words of an envelope; both ends must be of one version"
        raise ProtocolError(message) from error
    if type(size) is not int or size < 0:
        message = f"size of a payload must be a number of bytes, got {str(size)[:20]!r}"
        raise ProtocolError(message)
    return stamp, signature, size


def split_payload(payload: bytes) -> Iterator[bytes]:
    """The payload in frames, without a second copy of the whole."""
    view = memoryview(payload)
    for start in range(0, len(payload), CHUNK):
        yield bytes(view[start : start + CHUNK])


def request_frames(envelope: Envelope) -> Iterator[bytes]:
    """Frames of a request: words, then payload."""
    yield write_stamp_frame(envelope.stamp, envelope.signature, len(envelope.payload))
    yield from split_payload(envelope.payload)


def reply_frames(draft: UnsignedEnvelope) -> Iterator[bytes]:
    """Frames of a reply: payload, hashed as it goes, then words."""
    digest = hashlib.sha256()
    for chunk in split_payload(draft.payload):
        yield chunk
        digest.update(chunk)
    reply = draft.signed(digest.hexdigest())
    yield write_stamp_frame(reply.stamp, reply.signature, len(reply.payload))


class ReceivedPayload(typing.NamedTuple):
    """A payload that came in frames."""

    payload: bytes
    digest: str


def receive_payload(frames: Iterator[bytes], size: int) -> ReceivedPayload:
    """Put a payload of a known size together, hashing while it comes.

    Raises:
        ProtocolError: fewer or more bytes come than announced.
    """
    payload, digest, came = io.BytesIO(), hashlib.sha256(), 0
    for frame in frames:
        came += len(frame)
        if came > size:
            break
        digest.update(frame)
        payload.write(frame)
    if came != size:
        message = f"payload of {size} bytes was announced, {came} or more came; send it again"
        raise ProtocolError(message)
    return ReceivedPayload(payload.getvalue(), digest.hexdigest())


def socket_address(socket: str) -> str:
    """Name of a Unix socket as gRPC spells it.

    Raises:
        ConfigError: the path is too long for the operating system.
    """
    path = str(Path(socket).absolute())
    if len(path.encode()) > LONGEST_PATH:
        message = (
            f"agent.socket {path}: expected at most {LONGEST_PATH} bytes, got "
            f"{len(path.encode())}; choose a shorter folder, such as /run/fedwinnow"
        )
        raise ConfigError(message)
    return f"unix:{path}"
