"""Close: tell the members that the run is done."""

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.replies import Receipt
from fedwinnow.curation.protocol.requests import CloseRequest
from fedwinnow.server.phases.values import Outcome, Replies, ReplyContext, ServerPhase
from fedwinnow.server.state import RoundRecord, RunState


def request(state: RunState, config: RunConfig, header: Header) -> CloseRequest:  # noqa: ARG001 - every phase has the same form
    """Send the end of the run."""
    return CloseRequest(header=header)


def why_unusable(reply: Receipt, at: ReplyContext) -> str:  # noqa: ARG001 - every phase has the same form
    """Accept any receipt."""
    return ""


def absorb(state: RunState, config: RunConfig, replies: Replies, record: RoundRecord) -> Outcome:  # noqa: ARG001 - every step has the same form
    """Return the state unchanged."""
    return state, record


PHASE = ServerPhase(request=request, why_unusable=why_unusable, absorb=absorb)
