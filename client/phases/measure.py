"""Answer a probe or measure request: signal tables of private samples and public rows."""

import logging
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from fedwinnow.client.runs import tables
from fedwinnow.client.runs.refusals import refused_by
from fedwinnow.client.runs.site_run import SiteRun, load_checked_adapter
from fedwinnow.client.signals.collect import measure_public_rows, signal_measurer
from fedwinnow.client.signals.extra_columns import ExtraColumns, with_extra_columns
from fedwinnow.client.signals.reviewers import check_reviewers, review_columns
from fedwinnow.client.signals.shards import remove_shards
from fedwinnow.client.signals.teacher import teacher_columns
from fedwinnow.curation.datatypes import Adapter, SignalTable, Status
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.protocol.replies import (
    PublicSignals,
)
from fedwinnow.curation.protocol.requests import (
    MeasureRequest,
    ProbeRequest,
)
from fedwinnow.curation.signal_columns import OTHER_MODELS, REVIEWS, TEACHER

logger = logging.getLogger(__name__)

_NAMED = 5
"""Most rows that a warning names."""


def probe(run: SiteRun, request: ProbeRequest) -> Reply:
    """Measure forward-only signals with the untrained adapter."""
    return _signals(run, request.header, request.adapter, checkpoint=0, learning_rate=0.0)


def measure_checkpoint(run: SiteRun, request: MeasureRequest) -> Reply:
    """Measure every signal at checkpoint t ≥ 1."""
    return _signals(
        run,
        request.header,
        request.adapter,
        checkpoint=request.checkpoint,
        learning_rate=request.learning_rate,
        reviewers=request.reviewers,
    )


def _signals(
    run: SiteRun,
    header: Header,
    adapter: Adapter,
    *,
    checkpoint: int,
    learning_rate: float,
    reviewers: Mapping[str, Adapter] = MappingProxyType({}),
) -> Reply:
    columns = run.plugins.columns_at(checkpoint)
    extra = (
        teacher_columns(run) if columns & TEACHER else ExtraColumns()
    )  # before the student is loaded
    checked = load_checked_adapter(run, header, adapter)
    if columns & REVIEWS:
        with refused_by("reviewers"):
            check_reviewers(reviewers, adapter, run.site)
        extra = review_columns(run, reviewers)
        load_checked_adapter(run, header, adapter)
    table = signal_measurer(
        run,
        checked,
        columns=columns - OTHER_MODELS,
        checkpoint=checkpoint,
        learning_rate=learning_rate,
    )
    private = with_extra_columns(table, extra.private)(
        run.data.samples, f"{run.site} measures its samples"
    )
    tables.write_signals(run.files.signals(checkpoint), private)
    _tell_refused(run, private)
    public = measure_public_rows(
        run, checked, with_extra_columns(table, extra.public),
        columns=columns, checkpoint=checkpoint, extra_key=extra.key,
    )  # fmt: skip
    shown = public.trajectory[0]
    tables.write_signals(run.files.public(checkpoint), shown)
    remove_shards(run.files)
    return PublicSignals(
        header=header, site=run.site, table=shown, kinds=public.kinds, parents=public.parents
    )


def _tell_refused(run: SiteRun, private: SignalTable) -> None:
    """Log in which rows of the data the chat template refuses the turns; stays at the site."""
    places = np.flatnonzero(private.status == Status.REFUSED).tolist()
    if places:
        rows = [str(run.data.samples.rows[place] + 1) for place in places[:_NAMED]]
        more = " …" if len(places) > _NAMED else ""
        logger.warning(
            "site %s: the model's chat template refuses %d of %d samples, which are left out "
            "(rows of %s: %s%s)",
            run.site, len(places), len(private.ids), run.data.samples.source, ", ".join(rows), more,
        )  # fmt: skip
