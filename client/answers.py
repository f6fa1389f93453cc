"""Which function answers which request."""

from collections.abc import Callable, Mapping
from typing import Any

from fedwinnow.client import compute, decide
from fedwinnow.client.work import Work
from fedwinnow.curation.messages import (
    CloseRequest,
    ClusterRequest,
    EvaluateRequest,
    JoinRequest,
    JudgeRequest,
    MeasureRequest,
    ProbeRequest,
    QuotaRequest,
    Reply,
    Request,
    ScoreRequest,
    SelectRequest,
    TrainRequest,
)

_ANSWERS: Mapping[type, Callable[[Work, Any], Reply]] = {
    JoinRequest: compute.join,
    ProbeRequest: compute.probe,
    MeasureRequest: compute.measure_checkpoint,
    TrainRequest: compute.train_round,
    ScoreRequest: decide.score,
    ClusterRequest: decide.cluster,
    SelectRequest: decide.select_samples,
    QuotaRequest: decide.select_samples,
    EvaluateRequest: compute.evaluate_adapter,
    JudgeRequest: compute.judge_adapters,
    CloseRequest: decide.close,
}


def answer(work: Work, request: Request) -> Reply:
    """Compute the reply to a request."""
    return _ANSWERS[type(request)](work, request)
