"""Relay envelopes between Flower's processes and the agent's socket; never open a reply.

This shim runs where Flower's processes run, as their user: it knows a socket and a token, but no
data and no key.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from fedwinnow.client.agent.frames import (
    HANDLE,
    OPTIONS,
    STATUS,
    TOKEN,
    read_stamp_frame,
    request_frames,
    socket_address,
)
from fedwinnow.curation.errors import ProtocolError, TransportError
from fedwinnow.curation.protocol.envelope import Envelope


def relay_envelope(envelope: Envelope, socket: str, token_file: str, *, timeout: float) -> Envelope:
    """Send a request to the agent and wait for the reply.

    Args:
        envelope: A signed request.
        socket: Path of the agent's Unix socket.
        token_file: File with the token that the agent asks for.
        timeout: Longest wait, seconds.

    Raises:
        TransportError: the agent does not answer, does not accept the caller, or was cut off.
    """
    try:
        with grpc.insecure_channel(socket_address(socket), options=OPTIONS) as channel:
            call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(HANDLE)
            frames = call(
                request_frames(envelope),
                timeout=timeout,
                metadata=((TOKEN, _read_token(token_file)),),
            )
            return _reply(frames)
    except grpc.RpcError as error:
        raise _unanswered(error, socket) from error
    except ProtocolError as error:
        message = f"agent at {socket}: its reply was cut off; ask again"
        raise TransportError(message) from error


def agent_status(socket: str, token_file: str, *, timeout: float = 5.0) -> dict[str, Any]:
    """Return what the agent is doing: state, run, phase, progress, queue.

    Raises:
        TransportError: no agent answers.
    """
    try:
        with grpc.insecure_channel(socket_address(socket), options=OPTIONS) as channel:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(STATUS)
            answer = call(b"", timeout=timeout, metadata=((TOKEN, _read_token(token_file)),))
    except grpc.RpcError as error:
        raise _unanswered(error, socket) from error
    tree: dict[str, Any] = json.loads(answer)
    return tree


def _reply(frames: Iterator[bytes]) -> Envelope:
    """Join the frames of a reply: chunks, then the stamp frame that describes them."""
    parts: list[bytes] = list(frames)
    if not parts:
        message = "no frame came"
        raise ProtocolError(message)
    stamp, signature, size = read_stamp_frame(parts.pop())
    payload = b"".join(parts)
    if len(payload) != size:
        message = f"payload of {size} bytes was announced, {len(payload)} came"
        raise ProtocolError(message)
    return Envelope(stamp=stamp, signature=signature, payload=payload)


def _read_token(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        message = (
            f"agent-token {file}: cannot be read ({error.strerror}); start the agent first, and "
            "put this user into its group"
        )
        raise TransportError(message) from error


def _unanswered(error: grpc.RpcError, socket: str) -> TransportError:
    """Explain the agent's status code in plain words; its details hold no silo data."""
    code = error.code()
    reasons = {
        grpc.StatusCode.UNAVAILABLE: "no agent listens there; start `fedwinnow site serve`",
        grpc.StatusCode.DEADLINE_EXCEEDED: "no answer in time; it goes on computing, ask again",
        grpc.StatusCode.PERMISSION_DENIED: "it does not accept this request as the coordinator's",
        grpc.StatusCode.UNAUTHENTICATED: "the token is not its own; read it from agent.token",
    }
    why = reasons.get(code, f"it failed ({code.name}); see its log")
    return TransportError(f"agent at {socket}: {why}")
