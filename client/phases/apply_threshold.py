"""Select the samples that pass a request's threshold."""

import numpy as np

from fedwinnow.client.runs import tables
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.client.runs.told_text import tell
from fedwinnow.curation.datatypes import Scores, Selection
from fedwinnow.curation.errors import RefusalError
from fedwinnow.curation.protocol.requests import ClusterRequest, QuotaRequest, SelectRequest
from fedwinnow.curation.scores.histogram_edges import is_on_grid
from fedwinnow.curation.scores.selection import select_above


def apply_threshold(
    run: SiteRun, request: ClusterRequest | SelectRequest | QuotaRequest
) -> tuple[Selection, np.ndarray, Scores]:
    """Return the samples that pass a request's threshold, the status and score of each sample.

    Raises:
        RefusalError: the threshold is not on the grid of the histogram's edges.
    """
    threshold = request.per_site.get(run.site, request.threshold)
    file = run.files.scores
    ids, status, scores = tables.read_scores(file, run.terms.scorer.name)
    if not is_on_grid(threshold, tables.read_edges(file)):
        message = (
            f"threshold {threshold!r} is not on the grid of the histogram's edges; a threshold "
            "must come from the summaries"
        )
        told = tell("the threshold is not on the grid of the histogram's edges")
        raise RefusalError(message, clause="threshold", told=told)
    queue = run.files.queue
    queued = tables.read_queue(queue) if queue.exists() else None
    return select_above(ids, scores, status, threshold, queued=queued), status, scores
