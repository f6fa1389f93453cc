"""Probe and measure: agree on the signals of the public rows at one checkpoint.

Public rows are functions of (base, adapter, anchors, seeds) only, so honest sites agree: the median
over sites counts, and a site that is further from it than ``TOLERANCE`` (in
``curation/protocol/agreement.py``) is refused by name.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.datatypes import SignalTable
from fedwinnow.curation.protocol.agreement import why_disagreeing
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.replies import (
    PublicSignals,
)
from fedwinnow.curation.protocol.requests import MeasureRequest, ProbeRequest
from fedwinnow.server.phases.quorum import majority, require_quorum
from fedwinnow.server.phases.values import (
    Outcome,
    Replies,
    ReplyContext,
    ServerPhase,
    is_finite,
    replies_of,
    request_adapter,
)
from fedwinnow.server.state import RoundRecord, RunState, required

logger = logging.getLogger(__name__)


def probe_request(state: RunState, config: RunConfig, header: Header) -> ProbeRequest:  # noqa: ARG001 - every phase has the same form
    """Send the untrained adapter."""
    return ProbeRequest(header=header, adapter=required(request_adapter(state), "adapter"))


def request(state: RunState, config: RunConfig, header: Header) -> MeasureRequest:
    """Send the adapter of the checkpoint, and at the last one the members' adapters."""
    return MeasureRequest(
        header=header,
        adapter=required(request_adapter(state), "adapter"),
        checkpoint=state.round,
        learning_rate=state.learning_rate,
        reviewers=state.reviewers if state.round == config.warm_up.rounds else {},
    )


def absorb(state: RunState, config: RunConfig, replies: Replies, record: RoundRecord) -> Outcome:
    """Agree on the public rows of one checkpoint."""
    rows = replies_of(replies, PublicSignals)
    missing = dict(record.missing)
    agreed = majority({site: row_layout(reply) for site, reply in rows.items()})
    for site, reply in rows.items():
        if row_layout(reply) != agreed:
            missing[site] = "its public rows are not those of the other sites"
    rows = {site: reply for site, reply in rows.items() if site not in missing}
    first = rows[min(rows)]
    table, strangers = _median({site: reply.table for site, reply in rows.items()})
    missing.update(strangers)
    require_quorum([site for site in rows if site not in strangers], config, record.phase, missing)
    state = replace(
        state,
        tables=(*state.tables, table),
        kinds=first.kinds,
        parents=first.parents,
        domains=first.table.domains,
    )
    return state, replace(record, missing=missing)


def row_layout(reply: PublicSignals) -> tuple[object, ...]:
    """Return everything of public rows but the measured numbers; it must be equal at all sites."""
    table = reply.table
    columns = tuple((name, table.columns[name].shape) for name in sorted(table.columns))
    head = (table.ids, table.domains, table.checkpoint, table.references, table.learning_rate)
    sizes = (table.status.tobytes(), table.reference_gram.shape)
    return (*head, reply.kinds, reply.parents, columns, *sizes)


def _median(tables: Mapping[str, SignalTable]) -> tuple[SignalTable, dict[str, str]]:
    """Return the element-wise median table, and for each site too far from it the reason."""
    ordered = [tables[site] for site in sorted(tables)]
    first = ordered[0]
    columns = {
        name: np.median(np.stack([table.columns[name] for table in ordered]), axis=0).astype(
            first.columns[name].dtype
        )
        for name in sorted(first.columns)
    }
    gram = np.median(np.stack([table.reference_gram for table in ordered]), axis=0)
    strangers = {}
    for site, table in sorted(tables.items()):
        if why := why_disagreeing(table, columns, gram):
            strangers[site] = why
    return replace(first, columns=columns, reference_gram=gram), strangers


def why_unusable(reply: PublicSignals, at: ReplyContext) -> str:
    """Check that the rows belong together and to this checkpoint; agreement is checked later."""
    table, rows = reply.table, len(reply.table.ids)
    lengths = {len(reply.kinds), len(reply.parents), len(table.domains), len(table.status)}
    lengths |= {len(values) for values in table.columns.values()}
    if rows == 0 or lengths != {rows}:
        return f"its public rows do not belong together: {rows} ids, other lengths {lengths}"
    k = len(table.references)
    square = table.reference_gram.shape in {(k, k), (0, 0)}  # none where no gradient is measured
    if not square or any(v.ndim == 2 and v.shape[1] != k for v in table.columns.values()):  # noqa: PLR2004 - rows and references
        return f"its columns do not fit its {k} references"
    if table.checkpoint != at.state.round:
        return f"its rows are of checkpoint {table.checkpoint}, not {at.state.round}"
    if not all(is_finite(v) for v in (*table.columns.values(), table.reference_gram)):
        return "a public row holds a NaN or an infinity"
    return ""


PROBE = ServerPhase(request=probe_request, why_unusable=why_unusable, absorb=absorb)
PHASE = ServerPhase(request=request, why_unusable=why_unusable, absorb=absorb)
