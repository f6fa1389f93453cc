"""Time rounds and empty messages over Flower in turn, for ``fedwinnow bench rounds``.

This is the server's part; it runs where a ServerApp runs. A round sends every site the same request
again: its agent checks signature, sequence and policy, finds the answer on its disk, enters it in
the ledger, encrypts and signs it. That is the whole cost of a round except its computing and its
bytes. An empty message is one record without a value, answered by the node's app without an agent.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedwinnow.curation.config.identity import run_id
from fedwinnow.curation.config.load_files import load_run
from fedwinnow.curation.protocol.messages import Request
from fedwinnow.server.run.fold import absorb, initial_state, next_request
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.state import RunState
from fedwinnow.server.transport.interface import Transport
from fedwinnow.simulations.benchmarks.agent_transfer import timed_pairs

POLL = 0.1
"""Pause between two polls for replies, seconds; the transport's too."""


def measure(grid: Any, run_config: Mapping[str, Any]) -> None:  # noqa: ANN401 - Flower's grid
    """Join, compute once, then time pairs; write (empty, round) seconds to the file ``out``."""
    from fedwinnow.server.transport.codec import codec_of  # noqa: PLC0415 - Flower loads only here
    from fedwinnow.server.transport.flower_grid import GridTransport  # noqa: PLC0415 - Flower loads only here

    config = load_run(Path(str(run_config["scenario"])))
    store = RunFolder.open(config, resume=True)
    codec = codec_of(config, store.folder)
    transport = GridTransport(
        grid=grid, expected=len(config.members), patience=300.0, poll=POLL, codec=codec
    )
    state, request = warmed(transport, initial_state(config, run_id(config)))
    times = timed_pairs(
        lambda: empty(grid, transport.nodes.values()),
        lambda: ask(transport, request, state),
        int(run_config["pairs"]),
    )
    out = Path(str(run_config["out"]))
    out.with_suffix(".part").write_text(json.dumps(times), encoding="utf-8")
    out.with_suffix(".part").rename(out)


def warmed(transport: Transport, state: RunState) -> tuple[RunState, Request]:
    """Join and let sites compute the first phase; return the state and the answered request.

    Raises:
        ProtocolError: a site refuses.
    """
    joining, state_joined = next_request(state), state
    if joining is not None:
        state_joined = absorb(state, ask(transport, joining, state))
    request = next_request(state_joined)
    if request is None:  # pragma: no cover - a run never ends at join
        message = "the run ended at join"
        raise AssertionError(message)
    absorb(state_joined, ask(transport, request, state_joined))
    return state_joined, request


def ask(transport: Transport, request: Request, state: RunState) -> dict[str, Any]:
    """Run one round and return the replies by site.

    Raises:
        TransportError: a site is missing, so the round would be timed short.
    """
    from fedwinnow.curation.errors import TransportError  # noqa: PLC0415 - beside its one use

    replies = {}
    for delivery in transport.exchange(request, state.sites, deadline=300.0):
        if delivery.reply is None:
            message = f"bench rounds: site {delivery.site} is missing ({delivery.missing})"
            raise TransportError(message)
        replies[delivery.site] = delivery.reply
    return replies


def empty(grid: Any, nodes: Any) -> None:  # noqa: ANN401 - Flower's grid
    """Send an empty message to each node and wait for the answers."""
    from flwr.app import ConfigRecord, Message, RecordDict  # noqa: PLC0415, TID251 - loads only here

    content = RecordDict({"identity": ConfigRecord()})
    sent = [Message(content, node, "query.identity", ttl=300.0) for node in nodes]
    waiting = {str(i) for i in grid.push_messages(sent)}
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
        if waiting:
            time.sleep(POLL)
