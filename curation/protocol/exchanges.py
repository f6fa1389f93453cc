"""Table of exchanges: each kind of request, the phases it may belong to, and its reply."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol.phases import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One kind of request, its phases, and the reply that answers it."""

    phases: tuple[Phase, ...]
    """Phases that the request may belong to."""
    reply: type[m.Reply]
    private: bool = False
    """Whether the reply holds figures of private samples, which a site's policy counts."""


EXCHANGES: Mapping[type[m.Request], Exchange] = MappingProxyType(
    {
        m.JoinRequest: Exchange(phases=(Phase.JOIN,), reply=m.Joined),
        m.ProbeRequest: Exchange(phases=(Phase.PROBE,), reply=m.PublicSignals),
        m.MeasureRequest: Exchange(phases=(Phase.MEASURE,), reply=m.PublicSignals),
        m.TrainRequest: Exchange(
            phases=(Phase.WARM_UP, Phase.TRAIN), reply=m.TrainedAdapter, private=True
        ),
        m.ScoreRequest: Exchange(phases=(Phase.SCORE,), reply=m.SummaryReply, private=True),
        m.ClusterRequest: Exchange(phases=(Phase.CLUSTER,), reply=m.ClusterReply, private=True),
        m.SelectRequest: Exchange(phases=(Phase.SELECT,), reply=m.KeptReply, private=True),
        m.QuotaRequest: Exchange(phases=(Phase.SELECT,), reply=m.KeptReply, private=True),
        m.EvaluateRequest: Exchange(phases=(Phase.EVALUATE,), reply=m.MetricsReply, private=True),
        m.JudgeRequest: Exchange(phases=(Phase.JUDGE,), reply=m.JudgedAdapters),
        m.CloseRequest: Exchange(phases=(Phase.CLOSE,), reply=m.Receipt),
    }
)


def exchange_of(request: m.Request) -> Exchange:
    """Return the table's row for a request."""
    return EXCHANGES[type(request)]


def reply_class(phase: Phase) -> type[m.Reply]:
    """Return the class of a phase's replies."""
    return _REPLIES[phase]


_REPLIES: Mapping[Phase, type[m.Reply]] = {
    phase: exchange.reply for exchange in EXCHANGES.values() for phase in exchange.phases
}
