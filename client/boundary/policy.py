"""Enforce the silo's policy: what a coordinator may ask, and in which form a reply may leave.

Every clause is a key of ``[policy]`` in ``site.toml``, or the terms that the site joined under; a
refusal names it. Counts run over the ledger (:mod:`fedwinnow.client.boundary.release_budget`), so
neither a new run id nor a restart resets them.
Every clause is checked again at every message: consent withdrawn in the middle of a run ends the
run there.
"""

import math
from dataclasses import dataclass, replace

from fedwinnow.client.boundary.clauses import check_brought, check_size, require
from fedwinnow.client.boundary.group_sizes import (
    round_losses,
    samples_behind,
    warms_up_on_anchors,
)
from fedwinnow.client.boundary.release_budget import ReleaseBudget
from fedwinnow.client.boundary.training_clauses import check_training
from fedwinnow.client.boundary.work_clauses import check_work
from fedwinnow.client.budget.ledger import Ledger
from fedwinnow.client.budget.released_datasets import ReleasedDatasets
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
    JoinRequest,
    QuotaRequest,
    ScoreRequest,
    SelectRequest,
)
from fedwinnow.strategies.run_plugins import RunPlugins

LARGEST_HOLDOUT = 0.5
"""Largest share of an own hold-out; a larger one could leave a single sample to train on."""


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
        self._data(run)
        self._one_content(request, ledger, digest)

    @property
    def budget(self) -> ReleaseBudget:
        """Return the budget of each sample."""
        return ReleaseBudget(section=self.section, known=self.known)

    def charge(
        self, request: Request, run: SiteRun, ledger: Ledger, *, digest: str, recipient: str
    ) -> None:
        """Charge an admitted request, on disk, before anything private is computed.

        Args:
            request: What :meth:`before` let pass.
            run: The run at this site; a joining one is opened for this, and nothing more.
            ledger: What has left so far.
            digest: SHA-256 of the request.
            recipient: Fingerprint of the key that the reply will be encrypted to.

        Raises:
            RefusalError: the budget of a sample is spent, or few samples would be set apart.
            OutputError: the charge cannot be written.
        """
        self._data(run)
        self.budget.charge(request, run, ledger, digest=digest, recipient=recipient)

    def release(self, reply: Reply, run: SiteRun, ledger: Ledger) -> Reply:
        """Return the reply in the form in which it may leave.

        Raises:
            RefusalError: the reply may not leave at all.
        """
        if isinstance(reply, Joined):
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
        share = terms.evaluation.own_holdout
        require("own_holdout", share, share <= LARGEST_HOLDOUT, f"at most {LARGEST_HOLDOUT}")
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

    def _data(self, run: SiteRun) -> None:
        """Check the clause on the anchors that a run is about to use."""
        pinned, found = self.section.anchors_hash, run.data.anchors_hash
        require("anchors_hash", found, pinned in {"", found}, pinned)

    def _one_content(self, request: Request, ledger: Ledger, digest: str) -> None:
        """Refuse another content at a place of the run that was charged or answered before."""
        header = request.header
        place = (header.run, header.phase, header.round, header.arm)
        once = isinstance(request, ScoreRequest | ClusterRequest | SelectRequest | QuotaRequest)
        clause = "summaries" if once else "max_rounds"
        what = f"{header.phase} {header.round} of this run with other contents"
        before = ledger.at(place) - {digest}
        require(clause, what, not before, "one content for each phase and round")

    def _own(self, own: Metrics, run: SiteRun, ledger: Ledger) -> Metrics:
        """Return own hold-out sums with a rounded count; empty where they would reveal few."""
        few = own.samples < self.section.smallest_group
        if few or not self.budget.own_sums_leave(run, ledger):
            return Metrics()
        count = run.rounded(own.samples)
        if count == own.samples:
            return own
        return replace(own, loss_sum=own.loss_sum / own.samples * count, samples=count)


def _rank(terms: RunTerms) -> int:
    return terms.adapter.rank
