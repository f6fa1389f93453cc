"""A Unix socket in front of an agent's, whose connection is cut where a test says so."""

import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from fault_breaks import Break, Now

UP, DOWN = 900, 300
"""Bytes that come through before a connection is cut: past the handshake, inside the message."""


class Proxy:
    """Carries bytes both ways; at the break it refuses, cuts or swallows."""

    def __init__(self, *, behind: str, broken: Break) -> None:
        self.behind, self.broken = behind, broken
        self.socket = str(Path(tempfile.mkdtemp(prefix="fp-", dir="/tmp")) / "s")
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(self.socket)
        self.listening.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self.listening.accept()
            how = self.broken.point if self.broken.meets(Now.exchange, self.broken.site) else ""
            if how:
                self.broken.happens(Now.exchange)
            if how == "refused":
                near.close()
                continue
            far = socket.socket(socket.AF_UNIX)
            far.connect(self.behind)
            limits = {"up": (UP, None), "down": (None, DOWN), "silent": (None, DOWN)}
            up, down = limits.get(how, (None, None))
            for source, sink, limit in ((near, far, up), (far, near, down)):
                threading.Thread(
                    target=_carry, args=(source, sink, limit, how == "silent"), daemon=True
                ).start()


def _carry(source, sink, limit, swallow) -> None:
    """Carry until the end, or until ``limit`` bytes; then cut, or swallow the rest."""
    count = 0
    with suppress(OSError):
        while data := source.recv(65536):
            if limit is not None and count + len(data) > limit:
                sink.sendall(data[: limit - count])
                while swallow and source.recv(65536):
                    pass
                break
            sink.sendall(data)
            count += len(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
