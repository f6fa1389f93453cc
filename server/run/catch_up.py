"""Readmit returning sites: send again the requests they missed, and check their late replies.

A site needs its tables to score, its scores to cluster and to select, the last exchange of clusters
to select by quotas, and its selection to train; warm-up, measuring and evaluating depend on nothing
but the join. So a site that was away for a phase can take part again once it has answered the
requests that the next phase depends on. They are the very same requests as before, which it answers
from disk if it has computed them already. A threshold that is set stays as it is, and so do quotas:
a site that was not counted keeps the share of each cluster that the others keep.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedwinnow.curation.protocol.agreement import why_disagreeing
from fedwinnow.curation.protocol.messages import Reply, Request
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.protocol.replies import KeptReply, PublicSignals, SummaryReply
from fedwinnow.server.phases.measure import row_layout
from fedwinnow.server.phases.score import SCORE_TOLERANCE
from fedwinnow.server.run.fold import next_request, request_header, usable_replies
from fedwinnow.server.state import RunState, run_config

_NEEDED: Mapping[Phase, frozenset[Phase]] = {
    Phase.SCORE: frozenset({Phase.PROBE, Phase.MEASURE}),
    Phase.CLUSTER: frozenset({Phase.PROBE, Phase.MEASURE, Phase.SCORE}),
    Phase.SELECT: frozenset({Phase.PROBE, Phase.MEASURE, Phase.SCORE, Phase.CLUSTER}),
    Phase.TRAIN: frozenset({Phase.PROBE, Phase.MEASURE, Phase.SCORE, Phase.CLUSTER, Phase.SELECT}),
}
"""Phase → earlier phases that it depends on, besides the join."""


def missed_states(state: RunState, site: str) -> tuple[RunState, ...]:
    """Return the earlier states whose requests a site missed and needs now, oldest first."""
    missed: list[tuple[Phase, int]] = []
    last = run_config(state).clusters.iterations  # earlier exchanges went on without it
    for record in state.records:
        phase = Phase(record.phase)
        if site in record.missing:
            if phase is not Phase.CLUSTER or record.round == last:
                missed.append((phase, record.round))
        elif phase in _NEEDED:
            missed.clear()  # it could not have answered without what came before
    needed = _NEEDED.get(Phase(state.phase), frozenset())
    return tuple(_past(state, phase, number) for phase, number in missed if phase in needed)


def missed_requests(state: RunState) -> dict[str, tuple[Request, ...]]:
    """Return site → missed requests to send before the next one; only sites that have any."""
    found: dict[str, tuple[Request, ...]] = {}
    for site in state.sites:
        asked = [next_request(past) for past in missed_states(state, site)]
        if asked:
            found[site] = tuple(request for request in asked if request is not None)
    return found


def readmit(
    state: RunState, late: Mapping[str, Sequence[Reply]]
) -> tuple[RunState, dict[str, str]]:
    """Check the late replies of returning sites, and take their kept counts into the state.

    Args:
        state: The state before the exchange.
        late: Site → its replies to :func:`missed_requests`, in their order.

    Returns:
        The state with their kept counts, and site → why it may not take part yet.
    """
    faults: dict[str, str] = {}
    for site in state.sites:
        pasts, replies = missed_states(state, site), late.get(site, ())
        for number, past in enumerate(pasts):
            reply = replies[number] if number < len(replies) else None
            if why := _fault(past, site, reply, state):
                faults[site] = f"it missed phase {past.phase} and {why}"
                break
            if isinstance(reply, KeptReply):
                kept = {arm: {**by, site: reply.kept[arm]} for arm, by in state.kept.items()}
                state = replace(
                    state, kept={arm: dict(sorted(by.items())) for arm, by in kept.items()}
                )
    return state, faults


def _past(state: RunState, phase: Phase, number: int) -> RunState:
    """Return a state whose request is that of an earlier phase again, byte for byte."""
    past = replace(state, phase=phase.value, round=number, arm="", adapter=None)
    if phase is Phase.PROBE:
        return replace(past, adapter=state.initial)
    if phase is Phase.MEASURE:
        checkpoint = state.checkpoints[number - 1]
        return replace(past, adapter=checkpoint.adapter, learning_rate=checkpoint.learning_rate)
    return past


def _fault(past: RunState, site: str, reply: Reply | None, state: RunState) -> str:
    """Return why a late reply does not make up for an earlier phase; "" where it does."""
    if reply is None:
        return "has not made up for it in time"
    fitting, absent = usable_replies(past, {site: reply}, request_header(past), {})
    if site not in fitting:
        return absent[site]
    if isinstance(reply, PublicSignals):
        return _rows_fault(reply, state, past.round)
    return _scores_fault(reply, state) if isinstance(reply, SummaryReply) else ""


def _rows_fault(reply: PublicSignals, state: RunState, checkpoint: int) -> str:
    agreed = state.tables[checkpoint]
    same = replace(reply, table=agreed, kinds=state.kinds, parents=state.parents)
    if row_layout(reply) != row_layout(same):
        return "its public rows are not those of the other sites"
    return why_disagreeing(reply.table, agreed.columns, agreed.reference_gram)


def _scores_fault(reply: SummaryReply, state: RunState) -> str:
    agreed, edges = np.array(state.public_scores), next(iter(state.summaries.values())).edges
    if len(reply.public_scores) != len(agreed) or not np.array_equal(reply.summary.edges, edges):
        return "its histogram or its public scores are not shaped as the others'"
    apart = float(np.abs(reply.public_scores - agreed).max(initial=0.0))
    largest = max(1.0, float(np.abs(agreed).max(initial=0.0)))
    far = apart > SCORE_TOLERANCE * largest
    return f"its scores of the public rows differ from the median by {apart:.2g}" if far else ""
