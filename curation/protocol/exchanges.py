"""Table of exchanges: each kind of request, the phases it may belong to, and its reply."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fedwinnow.curation.protocol.messages import Reply, Request
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.protocol.replies import (
    ClusterReply,
    Joined,
    JudgedAdapters,
    KeptReply,
    MetricsReply,
    PublicSignals,
    Receipt,
    SummaryReply,
    TrainedAdapter,
)
from fedwinnow.curation.protocol.requests import (
    CloseRequest,
    ClusterRequest,
    EvaluateRequest,
    JoinRequest,
    JudgeRequest,
    MeasureRequest,
    ProbeRequest,
    QuotaRequest,
    ScoreRequest,
    SelectRequest,
    TrainRequest,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One kind of request, its phases, and the reply that answers it."""

    phases: tuple[Phase, ...]
    """Phases that the request may belong to."""
    reply: type[Reply]
    private: bool = False
    """Whether the reply holds figures of private samples, which a site's policy counts."""


EXCHANGES: Mapping[type[Request], Exchange] = MappingProxyType(
    {
        JoinRequest: Exchange(phases=(Phase.JOIN,), reply=Joined),
        ProbeRequest: Exchange(phases=(Phase.PROBE,), reply=PublicSignals),
        MeasureRequest: Exchange(phases=(Phase.MEASURE,), reply=PublicSignals),
        TrainRequest: Exchange(
            phases=(Phase.WARM_UP, Phase.TRAIN), reply=TrainedAdapter, private=True
        ),
        ScoreRequest: Exchange(phases=(Phase.SCORE,), reply=SummaryReply, private=True),
        ClusterRequest: Exchange(phases=(Phase.CLUSTER,), reply=ClusterReply, private=True),
        SelectRequest: Exchange(phases=(Phase.SELECT,), reply=KeptReply, private=True),
        QuotaRequest: Exchange(phases=(Phase.SELECT,), reply=KeptReply, private=True),
        EvaluateRequest: Exchange(phases=(Phase.EVALUATE,), reply=MetricsReply, private=True),
        JudgeRequest: Exchange(phases=(Phase.JUDGE,), reply=JudgedAdapters),
        CloseRequest: Exchange(phases=(Phase.CLOSE,), reply=Receipt),
    }
)


def exchange_of(request: Request) -> Exchange:
    """Return the table's row for a request."""
    return EXCHANGES[type(request)]


def reply_class(phase: Phase) -> type[Reply]:
    """Return the class of a phase's replies."""
    return _REPLIES[phase]


_REPLIES: Mapping[Phase, type[Reply]] = {
    phase: exchange.reply for exchange in EXCHANGES.values() for phase in exchange.phases
}
