"""Select the samples that pass a request's threshold."""

import numpy as np

from fedwinnow.client.runs import tables
from fedwinnow.client.runs.site_run import Work
from fedwinnow.curation.datatypes import Scores, Selection
from fedwinnow.curation.errors import RefusalError
from fedwinnow.curation.protocol.requests import ClusterRequest, QuotaRequest, SelectRequest
from fedwinnow.curation.scores.histogram_edges import on_grid
from fedwinnow.curation.scores.selection import select


def apply_threshold(
    work: Work, request: ClusterRequest | SelectRequest | QuotaRequest
) -> tuple[Selection, np.ndarray, Scores]:
    """Return the samples that pass a request's threshold, the status and score of each sample.

    Raises:
        RefusalError: the threshold is none that the histogram could lead to.
    """
    threshold = request.per_site.get(work.site, request.threshold)
    file = work.files.scores
    ids, status, scores = tables.read_scores(file, work.terms.scorer.name)
    if not on_grid(threshold, tables.read_edges(file)):
        message = (
            f"threshold {threshold!r} is not on the grid of the histogram's edges; a threshold "
            "must come from the summaries"
        )
        raise RefusalError(message)
    queue = work.files.queue
    queued = tables.read_queue(queue) if queue.exists() else None
    return select(ids, scores, status, threshold, queued=queued), status, scores
