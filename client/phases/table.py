"""Map each kind of request to the function that answers it."""

from collections.abc import Callable, Mapping
from typing import Any

from fedwinnow.client.phases import (
    close,
    cluster,
    evaluate,
    join,
    judge,
    measure,
    score,
    select,
    train,
)
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.curation.protocol.messages import Reply, Request
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

_ANSWERS: Mapping[type, Callable[[SiteRun, Any], Reply]] = {
    JoinRequest: join.join,
    ProbeRequest: measure.probe,
    MeasureRequest: measure.measure_checkpoint,
    TrainRequest: train.train_round,
    ScoreRequest: score.score,
    ClusterRequest: cluster.cluster,
    SelectRequest: select.select_samples,
    QuotaRequest: select.select_samples,
    EvaluateRequest: evaluate.evaluate_adapter,
    JudgeRequest: judge.judge_adapters,
    CloseRequest: close.close,
}


def answer(run: SiteRun, request: Request) -> Reply:
    """Compute the reply to a request."""
    return _ANSWERS[type(request)](run, request)
