"""Charge releases to the samples that they are computed from: a budget for each sample.

How many releases a sample took part in follows from the ledger: for each kind, the charges
and replies of all data sets that hold the sample. Neither a new run id nor another scorer, anchor
set, data version or division of the hold-out restarts it. A charge is on the disk before anything
private is computed, and is never given back.

Words of a refusal are constants; how many samples are concerned stands in the site's own log.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from fedwinnow.client.boundary.clauses import require
from fedwinnow.client.budget.ledger import Entry, Ledger
from fedwinnow.client.budget.released_datasets import HELD, ReleasedDatasets
from fedwinnow.client.budget.sample_atoms import SampleAtoms
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.curation.config.site import PolicySection
from fedwinnow.curation.protocol.exchanges import EXCHANGES, exchange_of
from fedwinnow.curation.protocol.messages import Reply, Request
from fedwinnow.curation.protocol.replies import (
    ClusterReply,
    JudgedAdapters,
    KeptReply,
    MetricsReply,
    PublicSignals,
    Receipt,
    SummaryReply,
)
from fedwinnow.curation.protocol.requests import (
    CloseRequest,
    EvaluateRequest,
    JoinRequest,
    JudgeRequest,
)

logger = logging.getLogger(__name__)

PUBLIC_LOSSES = "PublicLosses"
"""Charge of an evaluation whose own hold-out sums are withheld."""
RELEASING = frozenset(row.reply.__name__ for row in EXCHANGES.values() if row.private)
"""Kinds of messages with figures of private samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseBudget:
    """Limits on what may be computed from each sample, over all runs."""

    section: PolicySection
    known: ReleasedDatasets

    def charge(
        self, request: Request, run: SiteRun, ledger: Ledger, *, digest: str, recipient: str
    ) -> None:
        """Charge a request that private samples are needed for, before they are computed with.

        The same request on the same data is charged once. A join is charged before its data are
        compared with those of earlier releases, as the outcome of the comparison tells of them.

        Raises:
            RefusalError: a sample has spent its budget, or few samples would be set apart.
            OutputError: the charge cannot be written; then nothing is computed.
        """
        name = self._charged_dataset(request, run)
        if not name:
            return
        kind = exchange_of(request).reply.__name__
        if isinstance(request, EvaluateRequest) and not self.own_sums_leave(run, ledger):
            kind = PUBLIC_LOSSES
        self._check_summaries(request.header.run, run, ledger)
        self._check_number(request, run, ledger, digest)
        entry = Entry.charge(
            request.header, kind, request=digest, recipient=recipient, data=name,
            anchors=run.data.anchors_hash,
        )  # fmt: skip
        if isinstance(request, JoinRequest):
            self._enter(entry, run, ledger, kind)
            self._check_parts(run, ledger)
        else:
            self._check_parts(run, ledger)
            self._enter(entry, run, ledger, kind)

    def own_sums_leave(self, run: SiteRun, ledger: Ledger) -> bool:
        """Return whether sums over the own hold-out may leave: it is large, and sets few apart."""
        name = self.known.identify(run).own_holdout
        if len(run.data.own_holdout) < self.section.smallest_group or not name:
            return False
        return self._why_too_fine(run, ledger, name) == ""

    def data_behind(self, reply: Reply, run: SiteRun) -> str:
        """Return the name of the data set that a reply tells of; "" where it tells of none."""
        names = self.known.identify(run)
        if isinstance(reply, MetricsReply):
            return names.own_holdout if reply.own.samples else ""
        return "" if isinstance(reply, JudgedAdapters | Receipt) else names.samples

    def _charged_dataset(self, request: Request, run: SiteRun) -> str:
        """Return the name of the data set that a request is charged to; "" for none."""
        if isinstance(request, JudgeRequest | CloseRequest):  # these read public anchors, or none
            return ""
        names = self.known.identify(run)
        return names.own_holdout if isinstance(request, EvaluateRequest) else names.samples

    def _enter(self, entry: Entry, run: SiteRun, ledger: Ledger, kind: str) -> None:
        """Write a charge to disk, unless it stands there."""
        if entry.request in ledger.released(kind).get(entry.data, {}):
            return
        self.known.store(run)
        ledger.append(entry)

    def _check_summaries(self, run_id: str, run: SiteRun, ledger: Ledger) -> None:
        """Refuse a run that could not get its summary, as other runs spent it."""
        summaries = ledger.released(SummaryReply.__name__)
        if any(run_id in runs.values() for runs in summaries.values()):
            return
        number = {name: len(runs) for name, runs in summaries.items()}
        names, limit = self.known.identify(run), self.section.summaries
        self._within("summaries", run, names.samples, number, limit)

    def _check_number(self, request: Request, run: SiteRun, ledger: Ledger, digest: str) -> None:
        """Refuse a request whose samples took part in as many releases of its kind before."""
        reply = exchange_of(request).reply
        kinds = [reply.__name__, *([PUBLIC_LOSSES] if reply is MetricsReply else [])]
        clause, limit = limit_of(reply, self.section)
        number: dict[str, int] = {}
        for kind in kinds:
            for name, runs in ledger.released(kind).items():
                if reply is ClusterReply:  # all exchanges of a run are one release
                    came = len(set(runs.values()) - {request.header.run})
                else:
                    came = len(runs) - (digest in runs)
                number[name] = number.get(name, 0) + came
        self._within(clause, run, self._charged_dataset(request, run), number, limit)

    def _within(
        self, clause: str, run: SiteRun, name: str, number: Mapping[str, int], limit: int
    ) -> None:
        """Refuse where a sample of a data set took part in as many releases as are allowed."""
        atoms = self.known.atoms(run)
        mine, sizes = atoms.held(name), atoms.sizes
        spent = atoms.spent(number)
        full = mine & (spent >= limit)
        if full.any():
            logger.warning(
                "site %s: %d of %d samples took part in %d releases, policy.%s allows %d for each "
                "sample over all runs; raise it, or offer data without these samples",
                run.site, sizes[full].sum(), sizes[mine].sum(), spent[full].max(), clause, limit,
            )  # fmt: skip
        came = "a sample that took part in as many before"
        require(clause, came, not full.any(), f"{limit} for each sample over all runs")

    def _check_parts(self, run: SiteRun, ledger: Ledger) -> None:
        """Refuse data that differ from a combination of released data by few samples."""
        why = self._why_too_fine(run, ledger, self.known.identify(run).samples)
        if why:
            logger.warning("site %s: %s", run.site, why)
        least = self.section.min_change
        came = "data that would tell fewer apart"
        require("min_change", came, not why, f"data that differ by {least} samples or by none")

    def _why_too_fine(self, run: SiteRun, ledger: Ledger, name: str) -> str:
        """Return why figures of a data set would tell few samples apart; "" if they would not."""
        atoms, least = self.known.atoms(run), self.section.min_change
        released = {data for kind in RELEASING for data in ledger.released(kind)}
        if missing := released - set(atoms.names):
            return (
                f"{len(missing)} released data sets are not in {self.known.file}; restore it from "
                "a backup, or start with a new work folder and data that were never released"
            )
        part = atoms.smallest_part(name, _with_holdouts(atoms, released))
        if part is None or part >= least:
            return ""
        return (
            f"figures of these data with those of released data would be of {part} samples, "
            f"policy.min_change asks for {least}; add or remove at least as many at once"
        )


def limit_of(reply: type, section: PolicySection) -> tuple[str, int]:
    """Return the clause of a kind of reply, and how many of them a sample may take part in."""
    if issubclass(reply, SummaryReply | KeptReply | ClusterReply):
        return "summaries", section.summaries
    extra = 1 if reply is MetricsReply else 0  # the initial adapter is evaluated as well
    factor = 2 if reply is PublicSignals else 1  # a probe of each run, a checkpoint of each round
    return "max_rounds", section.max_rounds * factor + extra


def _with_holdouts(atoms: SampleAtoms, released: set[str]) -> set[str]:
    """Return released data sets with the hold-outs that a store of before held of them."""
    return released | {name + HELD for name in released if name + HELD in atoms.names}
