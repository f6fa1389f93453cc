"""Time the hop to a site's agent: a payload up and down through relay and agent, against bare gRPC.

Both servers run in one process of their own, on sockets of one kind, and return the payload. One
side is :func:`fedwinnow.client.agent.relay.relay_envelope` to an agent: signature and SHA-256
checked, one queue, a signed reply. The other is a gRPC stream of the same bytes in chunks of the
same size, with nothing else. Pairs are interleaved in alternating order; the figure is the median
of their ratios. Encryption is not part of the hop; it is measured separately.
"""

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from fedwinnow.client.agent.frames import OPTIONS, socket_address, split_payload
from fedwinnow.client.agent.grpc_service import Agent
from fedwinnow.client.agent.relay import relay_envelope
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.curation.config.site import AgentSection
from fedwinnow.curation.errors import TransportError
from fedwinnow.curation.process_guard import child_environment, scratch_folder
from fedwinnow.curation.protocol.envelope import Stamp, UnsignedEnvelope, decrypt, encrypt, sign
from fedwinnow.curation.protocol.envelope import verify_stamp as verify
from fedwinnow.curation.protocol.keys import PrivateKey

MEGABYTE = 1_000_000
_BARE = "/bare/Echo"


@dataclass(slots=True)
class Echo:
    """Stand-in for a guarded site: checks the signature and returns the payload."""

    key: PrivateKey
    name: str = "echo"
    cache: ProcessCache = field(default_factory=ProcessCache)

    @property
    def site(self) -> "Echo":
        """Return the site as an agent expects it: with name and cache."""
        return self

    @property
    def ledger(self) -> "Echo":
        """Return the ledger that an agent closes at its end."""
        return self

    def close(self) -> None:
        """Do nothing: no file is open."""

    def admit(self, stamp: bytes, signature: bytes) -> Stamp:
        """Verify the signature and return the stamp."""
        return verify(stamp, signature, self.key.public)

    def answer(self, stamp: Stamp, payload: bytes) -> UnsignedEnvelope:
        """Return the same payload, to be signed."""
        words = {"site": stamp.site, "run": stamp.run, "phase": stamp.phase}
        whole = {**words, "sequence": stamp.sequence, "ledger": ""}
        return UnsignedEnvelope(key=self.key, payload=payload, words=whole)


def serve(folder: Path) -> None:
    """Serve an agent and a bare stream on two sockets until standard input ends."""
    section = AgentSection(socket=str(folder / "agent.sock"), token=str(folder / "token"))
    agent = Agent(boundary=Echo(PrivateKey.load(folder / "key")), section=section)  # type: ignore[arg-type]  # stands in for a guarded site
    agent.start()
    server = grpc.server(ThreadPoolExecutor(4), options=OPTIONS)
    server.add_generic_rpc_handlers((_Bare(),))
    server.add_insecure_port(socket_address(str(folder / "bare.sock")))
    server.start()
    (folder / "ready").touch()
    sys.stdin.read()
    server.stop(0)
    agent.stop(0)


class _Bare(grpc.GenericRpcHandler):
    """gRPC handler that sends a stream of bytes back."""

    def service(self, details: Any) -> Any:  # noqa: ANN401 - grpc has no types
        """Return the handler of the one method."""
        return grpc.stream_stream_rpc_method_handler(_echo) if details.method == _BARE else None


def _echo(frames: Iterator[bytes], context: Any) -> Iterator[bytes]:  # noqa: ANN401, ARG001 - grpc's shape
    yield from list(frames)


def bench_transfer(pairs: int = 5, *, megabytes: int = 100) -> dict[str, float]:
    """Compare a payload up and down through relay and agent with a bare stream.

    Args:
        pairs: Interleaved pairs, after one that is not counted.
        megabytes: Size of the payload.

    Returns:
        ``ratio`` (median over pairs), ``agent_seconds`` and ``bare_seconds`` (medians, up and
        down), ``encrypt_seconds`` (to encrypt and decrypt once), ``megabytes``, ``pairs``.

    Raises:
        TransportError: the servers did not start.
    """
    with scratch_folder() as folder:
        key = PrivateKey.new()
        key.save(folder / "key")
        payload = np.random.default_rng(0).bytes(megabytes * MEGABYTE)
        words = {"site": "echo", "run": "bench", "phase": "train", "ledger": ""}
        envelope = sign(key, payload, sequence=1, **words)

        def agent() -> None:
            socket, token = str(folder / "agent.sock"), str(folder / "token")
            back = relay_envelope(envelope, socket, token, timeout=600.0)
            _same(len(back.payload), len(payload))

        def bare() -> None:
            with grpc.insecure_channel(
                socket_address(str(folder / "bare.sock")), options=OPTIONS
            ) as channel:
                call: Any = channel.stream_stream(_BARE)
                _same(len(b"".join(call(split_payload(payload), timeout=600.0))), len(payload))

        with _servers(folder):
            times = timed_pairs(bare, agent, pairs)
        start = time.perf_counter()
        decrypt(encrypt(payload, key.public), key)
        encrypting = time.perf_counter() - start
    return {
        "ratio": statistics.median(second / first for first, second in times),
        "agent_seconds": statistics.median(second for _, second in times),
        "bare_seconds": statistics.median(first for first, _ in times),
        "encrypt_seconds": encrypting,
        "megabytes": megabytes,
        "pairs": pairs,
    }


def timed_pairs(
    first: Callable[[], object], second: Callable[[], object], pairs: int
) -> list[tuple[float, float]]:
    """Time both sides of each pair in alternating order, in seconds; do not count a first pair."""
    times = []
    for pair in range(pairs + 1):
        seconds = [0.0, 0.0]
        for side in (0, 1) if pair % 2 else (1, 0):
            start = time.perf_counter()
            (first, second)[side]()
            seconds[side] = time.perf_counter() - start
        times.append((seconds[0], seconds[1]))
    return times[1:]


def _same(came: int, sent: int) -> None:
    if came != sent:
        message = f"transfer: {sent} bytes were sent, {came} came back"
        raise TransportError(message)


class _servers:  # noqa: N801 - a context manager
    """Process of the servers, running inside the block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        module = __spec__.name
        self.process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", module, str(self.folder)],
            env=child_environment(),
            stdin=subprocess.PIPE,
        )
        end = time.monotonic() + 120
        while not (self.folder / "ready").exists():
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                message = "transfer: the echo servers did not start; run the benchmark alone"
                raise TransportError(message)
            threading.Event().wait(0.05)

    def __exit__(self, *_: object) -> None:
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
