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
from fedwinnow.curation.protocol import messages as m

_ANSWERS: Mapping[type, Callable[[SiteRun, Any], m.Reply]] = {
    m.JoinRequest: join.join,
    m.ProbeRequest: measure.probe,
    m.MeasureRequest: measure.measure_checkpoint,
    m.TrainRequest: train.train_round,
    m.ScoreRequest: score.score,
    m.ClusterRequest: cluster.cluster,
    m.SelectRequest: select.select_samples,
    m.QuotaRequest: select.select_samples,
    m.EvaluateRequest: evaluate.evaluate_adapter,
    m.JudgeRequest: judge.judge_adapters,
    m.CloseRequest: close.close,
}


def answer(run: SiteRun, request: m.Request) -> m.Reply:
    """Compute the reply to a request."""
    return _ANSWERS[type(request)](run, request)
