"""Enforce the silo's policy: what a coordinator may ask, and in which form a reply may leave.

Every clause is a key of ``[policy]`` in ``site.toml``, or the terms that the site joined under; a
refusal names it. Counts run over the ledger, so neither a new run id nor a restart resets them.
Every clause is checked again at every message: consent withdrawn in the middle of a run ends the
run there.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedwinnow.client.boundary.clauses import check_brought, check_size, require
from fedwinnow.client.boundary.group_sizes import (
    round_losses,
    samples_behind,
    warms_up_on_anchors,
)
from fedwinnow.client.boundary.ledger import Ledger
from fedwinnow.client.boundary.released_datasets import ReleasedDatasets, holdout_division
from fedwinnow.client.boundary.training_clauses import check_training
from fedwinnow.client.boundary.work_clauses import check_work
from fedwinnow.client.runs.agreed_terms import (
    check_place,
    cluster_exchanges,
    named_plugins,
    optimizer_steps,
    training_rounds,
    why_adapters_are_shared,
)
from fedwinnow.client.runs.refusals import refused_by
from fedwinnow.client.runs.site_run import SiteRun, parse_terms
from fedwinnow.client.runs.told_text import constant, tell
from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.config.site import PolicySection
from fedwinnow.curation.datatypes import Metrics
from fedwinnow.curation.errors import ProtocolError
from fedwinnow.curation.protocol.exchanges import exchange_of
from fedwinnow.curation.protocol.messages import Reply, Request
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.protocol.replies import (
    ClusterReply,
    Joined,
    MetricsReply,
    PublicSignals,
    TrainedAdapter,
)
from fedwinnow.curation.protocol.requests import (
    CloseRequest,
    ClusterRequest,
    EvaluateRequest,
    JoinRequest,
    QuotaRequest,
    ScoreRequest,
    SelectRequest,
)
from fedwinnow.strategies.run_plugins import RunPlugins


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Policy clauses of one site, and the released data sets that they count over."""

    section: PolicySection
    known: ReleasedDatasets

    def before(self, request: Request, run: SiteRun | None, ledger: Ledger, digest: str) -> None:
        """Refuse a request that breaks a clause, before anything is computed.

        Args:
            request: What the coordinator asks; its signature is checked.
            run: The run at this site; None before it has joined.
            ledger: What has left so far.
            digest: SHA-256 of the request: the same request again is no further release.

        Raises:
            RefusalError: a clause does not hold.
        """
        phase, fitting = request.header.phase, exchange_of(request).phases
        require("phases", f"{type(request).__name__} in phase {phase!r}", phase in fitting,
                  " or ".join(fitting))  # fmt: skip
        if isinstance(request, JoinRequest):
            with refused_by("terms"):
                self._terms(parse_terms(request.terms), None)
            return
        if isinstance(request, CloseRequest):
            return
        allowed = self.section.phases
        require("phases", phase, not allowed or phase in allowed, f"one of {allowed}")
        if run is None:
            message = f"run {request.header.run!r} has not been joined; send the join request first"
            told = tell("this run has not been joined by this site; send the join request first")
            raise ProtocolError(message, clause="protocol", told=told)
        self._terms(run.terms, run.plugins)
        check_place(request, run.terms, run.plugins)
        check_brought(request, self.section)
        self._data(run, request.header.run, ledger)
        self._counts(request, run, ledger, digest)

    def release(self, reply: Reply, run: SiteRun, ledger: Ledger) -> Reply:
        """Return the reply in the form in which it may leave.

        Raises:
            RefusalError: the reply may not leave at all.
        """
        if isinstance(reply, Joined):
            self._data(run, reply.header.run, ledger)
            check_size(reply.adapter, self.section)
        if isinstance(reply, PublicSignals):
            other = set(reply.table.ids) - {sample.id for sample in run.data.rows.samples}
            require("public_rows", f"{len(other)} others", not other, "rows of anchors alone")
        if isinstance(reply, ClusterReply):
            least = self.section.smallest_group // (step := run.config.site.round_counts_to) * step
            few = [count for count in reply.counts if 0 < count < least]
            require("smallest_group", f"clusters of {few}", not few, f"at least {least}")
        if isinstance(reply, MetricsReply):
            return replace(reply, own=self._own(reply.own, run, ledger))
        if isinstance(reply, TrainedAdapter) and reply.gradient is not None:
            check_size(reply.gradient, self.section)
        if isinstance(reply, TrainedAdapter) and reply.adapter is not None:
            public = reply.header.phase == Phase.WARM_UP and warms_up_on_anchors(run)
            if not public and samples_behind(reply, run) < self.section.smallest_group:
                return replace(reply, samples=0, adapter=None, losses=(), learning_rate=0.0)
            check_size(reply.adapter, self.section)
            if not public:
                losses = round_losses(reply.losses, self.section.smallest_group)
                return replace(reply, losses=losses)
        return reply

    def _terms(self, terms: RunTerms, made: RunPlugins | None) -> None:
        """Refuse terms that break a clause.

        Args:
            terms: The terms of the run.
            made: Its plug-ins; None before it has joined: they are made once they are allowed.
        """
        section = self.section
        require(
            "allow_individual_updates",
            "a run whose adapters and histograms the coordinator sees one by one",
            section.allow_individual_updates,
            "secure sums alone, which are not built yet, unless it is set to true knowingly",
        )
        require(
            "privacy_budget",
            "a run without noise (epsilon inf)",
            math.isinf(section.privacy_budget),
            f"epsilon {section.privacy_budget}",
        )
        for name, changed in named_plugins(terms):
            allowed = section.plugins
            require("plugins", name, not allowed or name in allowed, f"one of {allowed}")
            plain = section.plugin_settings or not changed
            require("plugin_settings", f"{name} with {changed}", plain, "default settings alone")
        require("arms", terms.study.arms, terms.study.arms == ("curated",), "curated alone")
        if terms.clusters.count:
            most = section.max_clusters
            said = f"{terms.clusters.count} clusters of loss trajectories"
            require("max_clusters", said, terms.clusters.count <= most, f"at most {most}")
            number, most = cluster_exchanges(terms), section.max_cluster_rounds
            require("max_cluster_rounds", number, number <= most, f"at most {most}")
        asked = {"rounds": training_rounds, "steps": optimizer_steps, "rank": _rank}
        for name, count in asked.items():
            limit = tell("at most {most}", most=constant(f"max_{name}", section))
            fits = count(terms) <= getattr(section, f"max_{name}")
            require(f"max_{name}", constant(count, terms), fits, limit)
        check_training(terms, section)
        check_work(terms, section)
        sharer = why_adapters_are_shared(terms, RunPlugins.of(terms) if made is None else made)
        require(
            "share_adapter_with_members",
            f"{sharer}, for which this site's adapter goes to the other members",
            section.share_adapter_with_members or not sharer,
            "its adapters to go to the coordinator alone, unless it is set to true knowingly",
        )

    def _data(self, run: SiteRun, run_id: str, ledger: Ledger) -> None:
        """Check the clauses on the data and anchors that a run is about to use."""
        pinned, found = self.section.anchors_hash, run.data.anchors_hash
        require("anchors_hash", found, pinned in {"", found}, pinned)
        scored = self._same("SummaryReply", run, ledger, anchors=found)
        others = {entry["run"] for entry in scored} - {run_id}
        spent = len(others) >= self.section.summaries and run_id not in {e["run"] for e in scored}
        came = f"run {len(others) + 1} on the same data and anchors"
        require("summaries", came, not spent, f"{self.section.summaries} over all runs")
        first, mine = self.known.division(run), holdout_division(run)
        require("own_holdout", mine, mine == first, f"one division of a data set ({first})")

    def _counts(self, request: Request, run: SiteRun, ledger: Ledger, digest: str) -> None:
        """Limit how often figures of one data set leave, over all runs and within this one."""
        header = request.header
        place = (header.run, header.phase, header.round, header.arm)
        once = isinstance(request, ScoreRequest | ClusterRequest | SelectRequest | QuotaRequest)
        clause = "summaries" if once else "max_rounds"
        before = {entry["request"] for entry in ledger.at(*place)} - {digest}
        what = f"{header.phase} {header.round} of this run with other contents"
        require(clause, what, not before, "one content for each phase and round")
        exchange = exchange_of(request)
        if not exchange.private:
            return
        anchors = run.data.anchors_hash if once else None
        entries = self._same(exchange.reply.__name__, run, ledger, anchors=anchors)
        earlier = {entry["request"] for entry in entries} - {digest}
        if isinstance(request, ClusterRequest):  # all exchanges of a run are one release
            earlier = {entry["run"] for entry in entries} - {header.run}
        limit = self.section.summaries if once else self.section.max_rounds
        limit += isinstance(request, EvaluateRequest)  # the initial adapter is evaluated as well
        came = f"{header.phase} {len(earlier) + 1} on the same data"
        require(clause, came, len(earlier) < limit, f"{limit} over all runs")

    def _own(self, own: Metrics, run: SiteRun, ledger: Ledger) -> Metrics:
        """Return own hold-out sums with a rounded count; empty where they would reveal few."""
        entries = self._same("MetricsReply", run, ledger)
        changed = {entry["data"] for entry in entries} - {self.known.identify(run)}
        if own.samples < self.section.smallest_group or changed:
            return Metrics()
        count = run.rounded(own.samples)
        if count == own.samples:
            return own
        return replace(own, loss_sum=own.loss_sum / own.samples * count, samples=count)

    def _same(
        self, kind: str, run: SiteRun, ledger: Ledger, anchors: str | None = None
    ) -> list[Mapping[str, Any]]:
        """Return the entries of releases from the same data set, slightly changed or not."""
        entries = ledger.released(kind, anchors=anchors)
        names = self.known.same(run, {entry["data"] for entry in entries})
        return [entry for entry in entries if entry["data"] in names]


def _rank(terms: RunTerms) -> int:
    return terms.adapter.rank
