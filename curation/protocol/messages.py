"""The messages of the protocol: eleven requests, their replies, and the refusal.

Every message carries a :class:`Header`. A reply repeats the header of its request; one that does
not match the run, phase, round, arm or adapter is refused by name and changes nothing.
Nothing here can name code, a file or a sample of a silo: the fields below are all that travels.
"""

from typing import TypeAlias

from fedwinnow.curation.protocol.header import PROTOCOL, UNSENT, Header
from fedwinnow.curation.protocol.replies import (
    ClusterReply,
    Joined,
    JudgedAdapters,
    KeptReply,
    MetricsReply,
    PublicSignals,
    Receipt,
    Refusal,
    SiteCard,
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

__all__ = [
    "PROTOCOL",
    "UNSENT",
    "CloseRequest",
    "ClusterReply",
    "ClusterRequest",
    "EvaluateRequest",
    "Header",
    "JoinRequest",
    "Joined",
    "JudgeRequest",
    "JudgedAdapters",
    "KeptReply",
    "MeasureRequest",
    "Message",
    "MetricsReply",
    "ProbeRequest",
    "PublicSignals",
    "QuotaRequest",
    "Receipt",
    "Refusal",
    "Reply",
    "Request",
    "ScoreRequest",
    "SelectRequest",
    "SiteCard",
    "SummaryReply",
    "TrainRequest",
    "TrainedAdapter",
]


Request: TypeAlias = (
    JoinRequest
    | ProbeRequest
    | MeasureRequest
    | TrainRequest
    | ScoreRequest
    | ClusterRequest
    | QuotaRequest
    | SelectRequest
    | EvaluateRequest
    | JudgeRequest
    | CloseRequest
)
Reply: TypeAlias = (
    Joined
    | PublicSignals
    | TrainedAdapter
    | SummaryReply
    | ClusterReply
    | KeptReply
    | MetricsReply
    | JudgedAdapters
    | Receipt
    | Refusal
)
Message: TypeAlias = Request | Reply
