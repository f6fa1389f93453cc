"""Which function answers which request."""

from collections.abc import Callable, Mapping
from typing import Any

from fedwinnow.client.phases import measure, score
from fedwinnow.client.runs.site_run import Work
from fedwinnow.curation.protocol.messages import (
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
    JoinRequest: measure.join,
    ProbeRequest: measure.probe,
    MeasureRequest: measure.measure_checkpoint,
    TrainRequest: measure.train_round,
    ScoreRequest: score.score,
    ClusterRequest: score.cluster,
    SelectRequest: score.select_samples,
    QuotaRequest: score.select_samples,
    EvaluateRequest: measure.evaluate_adapter,
    JudgeRequest: measure.judge_adapters,
    CloseRequest: score.close,
}


def answer(work: Work, request: Request) -> Reply:
    """Compute the reply to a request."""
    return _ANSWERS[type(request)](work, request)
