"""Encode envelopes as gRPC frames: a stamp frame and the payload in chunks.

A request begins with the stamp frame, so that the signature is checked before the payload is read.
A reply ends with it. The stamp frame is JSON with base64, chunks are raw; gRPC carries bytes.

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
"""gRPC paths of the two methods."""
CHUNK = 2**20
"""Most bytes of a payload frame."""
OPTIONS = (
    ("grpc.max_receive_message_length", 4 * CHUNK),
    ("grpc.max_send_message_length", 4 * CHUNK),
    ("grpc.so_reuseport", 0),
    ("grpc.enable_http_proxy", 0),
)
"""gRPC options of both ends: a limit on the size of a frame, and no proxy."""
TOKEN = "fedwinnow-token"  # noqa: S105 - the name of a header
"""Name of the header that carries the token."""
LONGEST_PATH = 100
"""Most bytes of a Unix socket's path that every system accepts."""


def write_stamp_frame(stamp: bytes, signature: bytes, size: int) -> bytes:
    """Return the frame that holds a payload's stamp, signature and size."""
    both = {"stamp": stamp, "signature": signature}
    tree = {name: base64.b64encode(value).decode() for name, value in both.items()}
    return json.dumps({**tree, "size": size}).encode()


def read_stamp_frame(frame: bytes) -> tuple[bytes, bytes, int]:
    """Return the stamp, signature and size that :func:`write_stamp_frame` wrote.

    Raises:
        ProtocolError: the frame is not a stamp frame.
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
    """Yield the payload in chunks, without a second copy of the whole."""
    view = memoryview(payload)
    for start in range(0, len(payload), CHUNK):
        yield bytes(view[start : start + CHUNK])


def request_frames(envelope: Envelope) -> Iterator[bytes]:
    """Yield the frames of a request: stamp frame, then payload."""
    yield write_stamp_frame(envelope.stamp, envelope.signature, len(envelope.payload))
    yield from split_payload(envelope.payload)


def reply_frames(draft: UnsignedEnvelope) -> Iterator[bytes]:
    """Yield the frames of a reply: payload, hashed as it is sent, then stamp frame."""
    digest = hashlib.sha256()
    for chunk in split_payload(draft.payload):
        yield chunk
        digest.update(chunk)
    reply = draft.signed(digest.hexdigest())
    yield write_stamp_frame(reply.stamp, reply.signature, len(reply.payload))


class ReceivedPayload(typing.NamedTuple):
    """Payload joined from its frames, and its SHA-256."""

    payload: bytes
    digest: str


def receive_payload(frames: Iterator[bytes], size: int) -> ReceivedPayload:
    """Join a payload of known size from its frames, hashing it on the way.

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
    """Return the gRPC address of a Unix socket.

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
