"""One loop over any transport: ask, collect until all have answered or time is up, absorb, commit.

The transport is the only thing that differs between an in-process run, Flower's simulation and a
deployment; the fold in :mod:`server.rounds` sees the same messages in all three.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from fedwinnow.curation.messages import Reply, Request
from fedwinnow.server.rounds import absorb, next_request
from fedwinnow.server.state import RunState, configuration
from fedwinnow.server.status import Status, status_file
from fedwinnow.server.store import Store

logger = logging.getLogger(__name__)

DEADLINE = 24 * 3600.0
"""Longest wait for one phase, seconds, whatever the configuration says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What came back from one site."""

    site: str
    """Name of the site; "" where it never said it."""
    reply: Reply | None
    missing: str = ""
    """Why there is no reply."""
    bytes_down: int = 0
    bytes_up: int = 0


class Transport(Protocol):
    """Carries one request to many sites."""

    def exchange(
        self, request: Request, sites: Sequence[str], *, deadline: float
    ) -> Iterator[Delivery]:
        """Send to the named sites (none named: to every reachable one) and yield as they answer.

        Ends when all have answered or ``deadline`` seconds have passed; a site that did not answer
        is delivered with ``reply`` None and the reason.
        """
        ...


Progress = Callable[[RunState, Request, Delivery], None]
"""Told of every delivery: the state, the request, what came."""


def drive(
    state: RunState,
    transport: Transport,
    *,
    store: Store,
    deadline: float = DEADLINE,
    progress: Progress | None = None,
) -> RunState:
    """Run to the end from any committed state.

    A phase ends when all have answered, or when its own deadline (``[deadlines]``) or the general
    one has passed.

    Raises:
        ProtocolError: too few sites gave usable replies in a phase.
        EmptySelectionError: nothing is kept.
        OutputError: the state cannot be committed.
    """
    store.commit(state)
    while (request := next_request(state)) is not None:
        began = time.monotonic()
        limit = min(deadline, configuration(state).deadlines.of(state.phase))
        deliveries, replies = [], {}
        missing = dict.fromkeys(state.sites, "no reply came")
        status = Status(
            file=status_file(store.folder),
            header=request.header,
            members=state.sites,
            deadline=limit,
        )
        status.tell()
        for delivery in transport.exchange(request, state.sites, deadline=limit):
            deliveries.append(delivery)
            if progress is not None:
                progress(state, request, delivery)
            if delivery.reply is None:
                missing[delivery.site] = delivery.missing
            elif delivery.site in replies:
                logger.warning("site %s answered twice; the first reply counts", delivery.site)
            else:
                replies[delivery.site] = delivery.reply
            down, up = delivery.bytes_down, delivery.bytes_up
            status.answer(delivery.site, down=down, up=up, missing=delivery.missing)
        missing = {site: why for site, why in missing.items() if site not in replies}
        state = absorb(state, replies, missing)
        cost = replace(
            state.records[-1],
            seconds=time.monotonic() - began,
            bytes_down=sum(d.bytes_down for d in deliveries),
            bytes_up=sum(d.bytes_up for d in deliveries),
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
