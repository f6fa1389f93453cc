"""Answer a selection request: apply the threshold, write the reason of each dropped sample."""

import numpy as np

from fedwinnow.client.phases import cluster
from fedwinnow.client.phases.apply_threshold import apply_threshold
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.curation.datatypes import Selection
from fedwinnow.curation.errors import DataError, RefusalError
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.protocol.replies import KeptReply
from fedwinnow.curation.protocol.requests import QuotaRequest, SelectRequest
from fedwinnow.curation.scores.selection import keep_all, oracle, random_like
from fedwinnow.curation.seeds import derive_seed


def select_samples(work: SiteRun, request: SelectRequest | QuotaRequest) -> Reply:
    """Apply the threshold, and write down why each sample was dropped."""
    curated, status, scores = apply_threshold(work, request)
    if isinstance(request, QuotaRequest):
        curated = cluster.apply_quotas(work, request, curated, scores)
    chosen: dict[str, Selection] = {}
    for arm in work.terms.study.arms:
        chosen[arm] = _arm(work, arm, curated, curated.ids, status)
    tables.write_selection(work.files.selection, chosen)
    kept = {arm: work.rounded(selection.count) for arm, selection in chosen.items()}
    return KeptReply(header=request.header, site=work.site, kept=kept)


def _arm(
    work: SiteRun, arm: str, curated: Selection, ids: tuple[str, ...], status: np.ndarray
) -> Selection:
    if arm == "curated":
        return curated
    if not work.config.simulation:
        message = f"study arm {arm!r} is answered in simulations only; this site is not one"
        raise RefusalError(message)
    if arm == "keep_all":
        return keep_all(ids, status)
    if arm == "random":
        seed = derive_seed(work.terms.run.seed, work.site, "random arm")
        return random_like(curated, status, seed=seed)
    label = work.terms.study.truth
    truth = [sample.labels.get(label, "") for sample in work.pool.samples]
    if not all(truth):
        message = (
            f"study.truth = {label!r}: a sample of site {work.site} has no such label; name it in "
            "sites.columns.labels"
        )
        raise DataError(message)
    return oracle(ids, truth, status)
