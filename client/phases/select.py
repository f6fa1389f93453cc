"""Answer a selection request: apply the threshold, write the reason of each dropped sample."""

import numpy as np

from fedwinnow.client.phases import cluster
from fedwinnow.client.phases.apply_threshold import apply_threshold
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.client.runs.told_text import tell
from fedwinnow.curation.datatypes import Selection
from fedwinnow.curation.errors import DataError, RefusalError
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.protocol.replies import KeptReply
from fedwinnow.curation.protocol.requests import QuotaRequest, SelectRequest
from fedwinnow.curation.scores.selection import keep_all, oracle, random_like
from fedwinnow.curation.seeds import derive_seed


def select_samples(run: SiteRun, request: SelectRequest | QuotaRequest) -> Reply:
    """Apply the threshold, and write down why each sample was dropped."""
    curated, status, scores = apply_threshold(run, request)
    if isinstance(request, QuotaRequest):
        curated = cluster.apply_quotas(run, request, curated, scores)
    chosen: dict[str, Selection] = {}
    for arm in run.terms.study.arms:
        chosen[arm] = _arm(run, arm, curated, curated.ids, status)
    tables.write_selection(run.files.selection, chosen)
    kept = {arm: run.rounded(selection.count) for arm, selection in chosen.items()}
    return KeptReply(header=request.header, site=run.site, kept=kept)


def _arm(
    run: SiteRun, arm: str, curated: Selection, ids: tuple[str, ...], status: np.ndarray
) -> Selection:
    if arm == "curated":
        return curated
    if not run.config.simulation:
        message = f"study arm {arm!r} is answered in simulations only; this site is not one"
        told = tell("study arms are answered in simulations only")
        raise RefusalError(message, clause="policy.arms", told=told)
    if arm == "keep_all":
        return keep_all(ids, status)
    if arm == "random":
        seed = derive_seed(run.terms.run.seed, run.site, "random arm")
        return random_like(curated, status, seed=seed)
    label = run.terms.study.truth
    truth = [sample.labels.get(label, "") for sample in run.data.samples]
    if not all(truth):
        message = (
            f"study.truth = {label!r}: a sample of site {run.site} has no such label; name it in "
            "sites.columns.labels"
        )
        raise DataError(message)
    return oracle(ids, truth, status)
