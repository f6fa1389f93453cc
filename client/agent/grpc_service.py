"""Serve a site over gRPC: a long-lived agent that owns data, model, policy and ledger.

The agent listens on a Unix socket. Flower's processes come and go; the agent stays, keeps the base
model warm, and computes one request at a time, in order of arrival. A caller that disconnects stops
nothing: the reply is stored on disk, and a repeated request is answered from there. The handlers
take bytes; ``client/agent/frames.py`` says why there are no generated stubs.
"""

import hmac
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import grpc

from fedwinnow.client.agent import listener
from fedwinnow.client.agent.frames import (
    HANDLE,
    OPTIONS,
    STATUS,
    TOKEN,
    read_stamp_frame,
    receive_payload,
    reply_frames,
    socket_address,
)
from fedwinnow.client.boundary.guarded_site import GuardedSite
from fedwinnow.client.runs.refusals import clause_of
from fedwinnow.curation.config.site import AgentSection
from fedwinnow.curation.errors import (
    OutputError,
    ProtocolError,
    UnauthorisedError,
)
from fedwinnow.curation.process_guard import remove_at_end
from fedwinnow.curation.protocol.envelope import Stamp, UnsignedEnvelope

logger = logging.getLogger(__name__)

CALLERS = 16
"""Most calls that wait at one time."""


@dataclass(slots=True)
class Activity:
    """Current activity of the agent, for ``fedwinnow site status``."""

    started: float = field(default_factory=time.time)
    answered: int = 0
    waiting: int = 0
    current: Stamp | None = None
    since: float = 0.0
    work: tuple[str, int, int] = ("", 0, 0)
    """Name of the current computation, units done, units in all."""
    work_began: tuple[float, int] = (0.0, 0)
    """When its progress was first told, and the units done then."""
    last_error: str = ""
    """Clause of the last error (``curation/protocol/refusal_clauses.py``); "" for none."""

    def told(self, what: str, done: int, total: int) -> None:
        """Record the progress of a long computation."""
        before, done_before, _ = self.work
        if what != before or done < done_before:
            self.work_began = time.time(), done
        self.work = (what, done, total)

    def words(self) -> str:
        """Return what is computed, how fast, and how much time is left; "" while idle.

        The counts tell how large the silo is: they are for its own log and nobody else.
        """
        current, (what, done, total), (began, at_first) = self.current, self.work, self.work_began
        if current is None:
            return ""
        now = time.time()
        place = f"run {current.run}, phase {current.phase}, {now - self.since:.0f} s so far"
        spent = now - began
        if not 0 < done < total or done <= at_first or spent <= 0:
            return place
        rate = (done - at_first) / spent
        left = (total - done) / rate
        return f"{place}: {what}: {done} of {total}, {rate:.3g} a second, about {left:.0f} s left"

    def tree(self) -> dict[str, Any]:
        """Return the activity as plain values (seconds, counts, per cent), for token holders."""
        now, (what, done, total) = time.time(), self.work
        current = self.current  # read once, as the computation may end meanwhile
        tree: dict[str, Any] = {
            "state": "computing" if current else "idle",
            "process": os.getpid(),
            "up_seconds": round(now - self.started, 1),
            "answered": self.answered,
            "waiting": self.waiting,
            "last_error": self.last_error,
        }
        if current:
            tree |= {"run": current.run, "phase": current.phase}
            tree |= {"seconds": round(now - self.since, 1)}
            share = 100 * done // total if total else 0  # the total would reveal how many samples
            tree |= {"work": what, "percent": share}
        return tree


@dataclass(slots=True, kw_only=True)
class Agent:
    """Process that serves a :class:`GuardedSite`."""

    boundary: GuardedSite
    section: AgentSection
    largest: int = 2_000_000_000
    """Most bytes of a payload."""
    activity: Activity = field(default_factory=Activity)
    _token: str = field(default="", repr=False)
    _server: grpc.Server | None = None
    _computing: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="compute")
    )
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Prepare token and socket, and start listening.

        Raises:
            ConfigError: the socket's path is too long, the group is unknown, the folder is
                shared with others, or the token is too weak.
            OutputError: another agent listens there, or the folder cannot be written.
        """
        self.boundary.site.cache.progress = self.activity.told
        where = socket_address(self.section.socket)
        self._token = listener.prepare_folder(self.section)
        server = grpc.server(ThreadPoolExecutor(CALLERS), options=OPTIONS)
        server.add_generic_rpc_handlers((_Handlers(self),))
        previous = os.umask(0o117)
        try:
            server.add_insecure_port(where)
            server.start()
        except RuntimeError as error:
            message = (
                f"agent.socket {self.section.socket}: cannot listen there ({error}); look at its "
                "folder"
            )
            raise OutputError(message) from error
        finally:
            os.umask(previous)
        remove_at_end(Path(self.section.socket))  # where this process is killed
        listener.share_with_group(self.section)
        self._server = server
        logger.info("site %s listens on %s", self.boundary.site.name, self.section.socket)

    def wait(self) -> None:
        """Block until :meth:`stop` is called."""
        if self._server is not None:
            self._server.wait_for_termination()

    def stop(self, grace: float = 1.0) -> None:
        """Stop serving, cancel queued requests and close the ledger; files on disk stay."""
        if self._server is not None:
            self._server.stop(grace).wait()
            Path(self.section.socket).unlink(missing_ok=True)
        self._computing.shutdown(wait=False, cancel_futures=True)
        self.boundary.ledger.close()

    def admitted(self, frames: Iterator[bytes]) -> tuple[Stamp, bytes]:
        """Return stamp and payload of a call that may be answered.

        Raises:
            UnauthorisedError: the call may not be answered; where the stamp already shows it, the
                payload is not read.
        """
        try:
            stamp, signature, size = read_stamp_frame(next(frames, b""))
            found = self.boundary.admit(stamp, signature)
            if size != found.size or size > self.largest:
                message = f"payload of {size} bytes was announced, signed were {found.size}"
                raise UnauthorisedError(message)
            payload, digest = receive_payload(frames, size)
        except ProtocolError as error:
            raise UnauthorisedError(str(error)) from error
        if digest != found.digest:
            message = "payload is not the one that was signed"
            raise UnauthorisedError(message)
        return found, payload

    def compute(self, stamp: Stamp, payload: bytes) -> "Future[UnsignedEnvelope]":
        """Queue a request; one is computed at a time."""
        with self._counting:
            self.activity.waiting += 1
        return self._computing.submit(self._compute, stamp, payload)

    def _compute(self, stamp: Stamp, payload: bytes) -> UnsignedEnvelope:
        activity = self.activity
        with self._counting:
            activity.waiting -= 1
            activity.current, activity.since, activity.work = stamp, time.time(), ("", 0, 0)
        try:
            reply = self.boundary.answer(stamp, payload)
        except Exception as error:
            activity.last_error = clause_of(error)
            logger.exception("phase %s of run %s cannot be answered", stamp.phase, stamp.run)
            raise
        else:
            activity.answered += 1
            return reply
        finally:
            activity.current = None

    def knows(self, token: str) -> bool:
        """Return whether a caller shows the token, compared in constant time."""
        return hmac.compare_digest(token.encode(), self._token.encode())


class _Handlers(grpc.GenericRpcHandler):
    """Handlers of the two gRPC methods, on raw bytes."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    def service(self, details: Any) -> Any:  # noqa: ANN401 - grpc has no types
        """Return the handler of a method, or None where there is none."""
        if details.method == HANDLE:
            return grpc.stream_stream_rpc_method_handler(self._handle)
        if details.method == STATUS:
            return grpc.unary_unary_rpc_method_handler(self._status)
        return None

    def _handle(self, frames: Iterator[bytes], context: Any) -> Iterator[bytes]:  # noqa: ANN401 - grpc has no types
        self._known(context)
        try:
            stamp, payload = self.agent.admitted(frames)
        except UnauthorisedError as error:
            logger.warning("a call is not answered: %s", error)
            _abort(context, grpc.StatusCode.PERMISSION_DENIED, "not authorised")
        except grpc.RpcError:  # the caller is gone
            raise
        except Exception:
            logger.exception("a call cannot be admitted")
            _abort(context, grpc.StatusCode.INTERNAL, "see the agent's log")
        future = self.agent.compute(stamp, payload)
        del payload
        try:
            reply = future.result()
        except Exception:  # noqa: BLE001 - logged where it happened; its text must not leave
            _abort(context, grpc.StatusCode.INTERNAL, "nothing may leave; see the agent's log")
        yield from reply_frames(reply)

    def _status(self, request: bytes, context: Any) -> bytes:  # noqa: ANN401, ARG002 - grpc's shape
        self._known(context)
        site = {"site": self.agent.boundary.site.name}
        return json.dumps(site | self.agent.activity.tree()).encode()

    def _known(self, context: Any) -> None:  # noqa: ANN401 - grpc has no types
        shown = dict(context.invocation_metadata()).get(TOKEN, "")
        if not self.agent.knows(str(shown)):
            logger.warning("a call without the token is not answered")
            _abort(context, grpc.StatusCode.UNAUTHENTICATED, "no token")


def _abort(context: Any, code: grpc.StatusCode, text: str) -> NoReturn:  # noqa: ANN401 - grpc has no types
    context.abort(code, text)
    raise AssertionError  # pragma: no cover - abort raises
