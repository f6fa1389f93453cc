"""Drive a run over any transport: ask, collect until all answer or time is up, absorb, commit.

The transport is the only thing that differs between an in-process run, Flower's simulation and a
deployment; the fold in :mod:`fedwinnow.server.run.fold` sees the same messages in all three.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from fedwinnow.curation.errors import CurationError
from fedwinnow.curation.protocol.messages import Reply, Request
from fedwinnow.server.aggregation.kept_adapters import store_adapters
from fedwinnow.server.run.catch_up import missed_requests, readmit
from fedwinnow.server.run.fold import absorb, next_request
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.run.status import Status
from fedwinnow.server.state import RunState, run_config
from fedwinnow.server.transport.interface import Delivery, Transport

logger = logging.getLogger(__name__)

DEADLINE = 24 * 3600.0
"""Longest wait for one phase, seconds, whatever the configuration says."""


Progress = Callable[[RunState, Request, Delivery], None]
"""Called with every delivery, after the state and the request that it answers."""


@dataclass(slots=True)
class _Collected:
    """Replies, absences and bytes of one exchange."""

    missing: dict[str, str] = field(default_factory=dict)
    replies: dict[str, Reply] = field(default_factory=dict)
    late: dict[str, list[Reply]] = field(default_factory=dict)
    """Site → replies to requests that it had missed."""
    down: int = 0
    up: int = 0

    def take(self, delivery: Delivery) -> None:
        """Add one delivery; of two replies of a site the first counts."""
        site, reply = delivery.site, delivery.reply
        self.down += delivery.bytes_down
        self.up += delivery.bytes_up
        if delivery.request is not None and reply is not None:
            self.late.setdefault(site, []).append(reply)
        elif reply is None:
            self.missing[site] = delivery.missing
        elif site in self.replies:
            logger.warning("site %s answered twice; the first reply counts", site)
        else:
            self.replies[site] = reply


def drive(
    state: RunState,
    transport: Transport,
    *,
    store: RunFolder,
    deadline: float = DEADLINE,
    progress: Progress | None = None,
) -> RunState:
    """Drive a run to its end from any committed state.

    A phase ends when all have answered, or when its own deadline (``[deadlines]``) or the general
    one has passed.

    Raises:
        ProtocolError: too few sites gave usable replies in a phase.
        EmptySelectionError: no sample is kept for the curated arm, or no adapter is left to merge.
        OutputError: the state cannot be committed.
    """
    store.commit(state)
    status = Status.of(store.folder)
    try:
        return _drive(state, transport, store, deadline, status, progress)
    except CurationError as error:
        status.stop(f"{type(error).__name__}: {error}")
        raise


def _drive(
    state: RunState,
    transport: Transport,
    store: RunFolder,
    deadline: float,
    status: Status,
    progress: Progress | None,
) -> RunState:
    while (request := next_request(state)) is not None:
        began = time.monotonic()
        came = _collect(state, request, transport, min(deadline, _limit(state)), status, progress)
        returned, faults = readmit(state, came.late)
        replies = {site: reply for site, reply in came.replies.items() if site not in faults}
        silent = dict.fromkeys(_members(state), "no reply came") | faults | came.missing
        missing = {site: why for site, why in silent.items() if site not in replies}
        state = absorb(returned, replies, missing)
        gone = state.records[-1].missing
        store_adapters(
            store.folder, returned, {s: one for s, one in replies.items() if s not in gone}
        )
        cost = replace(
            state.records[-1],
            seconds=time.monotonic() - began,
            bytes_down=came.down,
            bytes_up=came.up,
            returned={s: len(late) for s, late in sorted(came.late.items()) if s not in faults},
        )
        state = replace(state, records=(*state.records[:-1], cost))
        store.commit(state)
        logger.info(
            "phase %s round %d arm %s: %d sites in %.1f s, %d bytes down, %d up",
            cost.phase,
            cost.round,
            cost.arm or "-",
            len(replies),
            cost.seconds,
            cost.bytes_down,
            cost.bytes_up,
        )
    return state


def _members(state: RunState) -> tuple[str, ...]:
    """Return the sites that are asked, as far as they are known: at join the pinned members."""
    return state.sites or tuple(member.name for member in run_config(state).members)


def _limit(state: RunState) -> float:
    """Return the phase's own deadline, seconds."""
    return run_config(state).deadlines.of(state.phase)


def _collect(
    state: RunState,
    request: Request,
    transport: Transport,
    limit: float,
    status: Status,
    progress: Progress | None,
) -> _Collected:
    """Ask, and collect deliveries until all have answered or the time is up."""
    came = _Collected()
    status.begin(request.header, _members(state), limit)
    owing = missed_requests(state)
    exchange = (
        transport.exchange(request, state.sites, deadline=limit, earlier=owing)
        if owing
        else transport.exchange(request, state.sites, deadline=limit)
    )
    for delivery in exchange:
        came.take(delivery)
        if delivery.request is None and progress is not None:
            progress(state, request, delivery)
        status.answer(delivery)
    return came
