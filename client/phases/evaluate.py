"""Answer an evaluation request: losses and generations of an adapter on the evaluation samples."""

from collections.abc import Sequence

from fedwinnow.client.phases.sample_losses import largest_loss, sample_losses
from fedwinnow.client.runs.site_run import SiteRun, load_checked_adapter, public_result_key
from fedwinnow.curation.datatypes import Metrics, Sample
from fedwinnow.curation.model.pretrained import generate
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.protocol.replies import MetricsReply
from fedwinnow.curation.protocol.requests import EvaluateRequest
from fedwinnow.curation.scores.bounded_mean import bounded_mean
from fedwinnow.curation.scores.rounded_counts import fewest_of_count


def first_per_domain(anchors: Sequence[Sample], number: int) -> tuple[Sample, ...]:
    """Return the first ``number`` anchors, taken from the domains in turn."""
    by_domain: dict[str, list[Sample]] = {}
    for sample in anchors:
        by_domain.setdefault(sample.domain, []).append(sample)
    turns = [
        domain[i]
        for i in range(max(map(len, by_domain.values()), default=0))
        for _, domain in sorted(by_domain.items())
        if i < len(domain)
    ]
    return tuple(turns[:number])


def _own_losses(run: SiteRun) -> Metrics:
    """Return sum and number of the losses of the own hold-out.

    In a deployment each loss is bounded, and the mean lies on a grid of which one sample moves it
    by at most one step (``curation/scores/bounded_mean.py``).
    """
    simulated = run.config.simulation
    values = sample_losses(run, run.data.own_holdout, strict=simulated)
    if simulated:
        return Metrics(loss_sum=float(values.sum()), samples=len(values))
    number, told = len(values), run.rounded(len(values))
    if told == 0:
        return Metrics()
    fewest = fewest_of_count(told, run.config.site.round_counts_to)  # the grid shows no more
    mean = bounded_mean(values, cap=largest_loss(run), count=fewest)
    return Metrics(loss_sum=mean * number, samples=number)


def evaluate_adapter(run: SiteRun, request: EvaluateRequest) -> Reply:
    """Return losses of public hold-out anchors one by one, and sums for the own hold-out."""
    checked = load_checked_adapter(run, request.header, request.adapter)
    anchors = run.data.split.holdout
    key = public_result_key(run, checked)
    own = Metrics()
    if len(run.data.own_holdout) > 0:
        own = _own_losses(run)
    shown = first_per_domain(anchors, request.generate)
    texts = run.cache.cached_public(
        ("generations", str(request.generate), *key),
        lambda: (
            generate(
                run.loaded, shown, max_new_tokens=48, system_prompt=run.terms.model.system_prompt
            )
            if shown
            else ()
        ),
    )
    return MetricsReply(
        header=request.header,
        site=run.site,
        public_losses=run.cache.cached_public(
            ("holdout", *key), lambda: sample_losses(run, anchors)
        ),
        own=own,
        prompts=tuple(sample.prompt for sample in shown),
        references=tuple(sample.response for sample in shown),
        generations=texts,
    )
