"""The silo's own word: what a coordinator may ask, and in which form an answer may leave.

Every clause is a key of ``[policy]`` in ``site.toml``; a refusal names it. Counts run over the
ledger, so neither a new run id nor a restart begins them anew.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from fedwinnow.client.known_data import KnownData
from fedwinnow.client.ledger import Ledger
from fedwinnow.client.work import Work, parse_terms
from fedwinnow.curation.config import PolicySection, RunTerms
from fedwinnow.curation.errors import ProtocolError, RefusalError
from fedwinnow.curation.messages import (
    CloseRequest,
    EvaluateRequest,
    Joined,
    JoinRequest,
    MeasureRequest,
    MetricsReply,
    Phase,
    Reply,
    Request,
    ScoreRequest,
    SelectRequest,
    TrainedAdapter,
    TrainRequest,
)
from fedwinnow.curation.nouns import Adapter, Metrics
from fedwinnow.curation.sections import PluginSection

_MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The clauses of one site, and what they are counted on."""

    section: PolicySection
    known: KnownData

    def before(self, request: Request, work: Work | None, ledger: Ledger, digest: str) -> None:
        """Say no to a request before anything is computed.

        Args:
            request: What the coordinator asks; its signature is checked.
            work: The run at this site; None before it has joined.
            ledger: What has left so far.
            digest: SHA-256 of the request: the same request again is no further release.

        Raises:
            RefusalError: a clause stands in the way.
        """
        phase = request.header.phase
        if not isinstance(request, JoinRequest | CloseRequest):
            allowed = self.section.phases
            self._ask("phases", phase, not allowed or phase in allowed, f"one of {allowed}")
        if isinstance(request, JoinRequest):
            self._terms(parse_terms(request.terms))
            return
        if work is None:
            message = f"run {request.header.run!r} has not been joined; send the join request first"
            raise ProtocolError(message)
        adapter = getattr(request, "adapter", None)
        if isinstance(adapter, Adapter):
            self._adapter(adapter)
        if isinstance(request, TrainRequest):
            _in_plan(request, work.terms)
        if isinstance(request, MeasureRequest):
            last = work.terms.warm_up.rounds
            _agreed(
                "checkpoint", request.checkpoint, 1 <= request.checkpoint <= last, f"1 to {last}"
            )
        self._counts(request, work, ledger, digest)

    def release(self, reply: Reply, work: Work) -> Reply:
        """The reply in the form in which it may leave.

        Raises:
            RefusalError: it may not leave at all.
        """
        least = self.section.smallest_group
        if isinstance(reply, Joined):
            pinned, found = self.section.anchors_hash, reply.card.anchors
            self._ask("anchors_hash", found, pinned in {"", found}, pinned)
            self._adapter(reply.adapter)
        if isinstance(reply, MetricsReply) and 0 < reply.own.samples < least:
            return replace(reply, own=Metrics())
        if isinstance(reply, TrainedAdapter) and reply.adapter is not None:
            if reply.samples < least:
                return replace(reply, samples=0, adapter=None, losses=())
            self._adapter(reply.adapter)
            section = work.terms.training
            step = section.batch_size * section.accumulation
            return replace(reply, losses=pooled(reply.losses, math.ceil(least / step)))
        return reply

    def _terms(self, terms: RunTerms) -> None:
        """Clauses that the agreed terms of a run may break."""
        section = self.section
        self._ask(
            "allow_unsealed_adapters",
            "a run whose adapters and histograms the coordinator sees one by one",
            section.allow_unsealed_adapters,
            "true, set knowingly: sums that hide single sites are not built yet",
        )
        self._ask(
            "privacy_budget",
            "a run without noise (epsilon inf)",
            math.isinf(section.privacy_budget),
            f"epsilon {section.privacy_budget}",
        )
        for kind, plugin in _plugins(terms):
            name = f"{kind}:{plugin.name}"
            allowed = section.plugins
            self._ask("plugins", name, not allowed or name in allowed, f"one of {allowed}")
            plain = section.plugin_settings or not plugin.settings
            self._ask("plugin_settings", f"{name} {plugin.settings}", plain, "default settings")
        self._ask("arms", terms.study.arms, terms.study.arms == ("curated",), "curated alone")
        rounds, steps = _rounds(terms), _steps(terms)
        self._ask("max_rounds", rounds, rounds <= section.max_rounds, section.max_rounds)
        self._ask("max_steps", steps, steps <= section.max_steps, section.max_steps)
        rank = terms.adapter.rank
        self._ask("max_rank", rank, rank <= section.max_rank, section.max_rank)

    def _adapter(self, adapter: Adapter) -> None:
        rank = max((len(a) for a in adapter.a.values()), default=0)
        self._ask("max_rank", rank, rank <= self.section.max_rank, self.section.max_rank)
        size = sum(
            factor.numel() * factor.element_size()
            for factors in (adapter.a, adapter.b)
            for factor in factors.values()
        )
        limit = self.section.max_adapter_mb
        came = f"{size / _MEGABYTE:.1f} MB"
        self._ask("max_adapter_mb", came, size <= limit * _MEGABYTE, f"{limit} MB")

    def _counts(self, request: Request, work: Work, ledger: Ledger, digest: str) -> None:
        """Clauses over all runs: how often figures of one data set have left."""
        limits = {
            ScoreRequest: ("SummaryReply", "summaries", self.section.summaries),
            SelectRequest: ("KeptReply", "summaries", self.section.summaries),
            TrainRequest: ("TrainedAdapter", "max_rounds", self.section.max_rounds),
            EvaluateRequest: ("MetricsReply", "max_rounds", self.section.max_rounds + 1),
        }
        if type(request) not in limits:
            return
        kind, clause, limit = limits[type(request)]
        data = self.known.identify(work)
        earlier = {
            entry["request"]
            for entry in ledger.released(kind, anchors=work.pool.anchors_hash)
            if entry["data"] == data and entry["request"] != digest
        }
        came = f"request {len(earlier) + 1} for a {kind} of the same data and anchors"
        self._ask(clause, came, len(earlier) < limit, f"{limit} over all runs")

    def _ask(self, clause: str, came: object, allowed: bool, expected: object) -> None:  # noqa: FBT001 - local helper
        if not allowed:
            message = f"policy.{clause}: this site allows {expected}, the request holds {came}"
            raise RefusalError(message, clause=f"policy.{clause}")


def pooled(losses: tuple[float, ...], steps: int) -> tuple[float, ...]:
    """Means of ``steps`` losses in a row; a shorter rest joins the last mean."""
    number = len(losses) // steps
    bounds = [*(i * steps for i in range(number)), len(losses)]
    parts = [losses[a:b] for a, b in pairwise(bounds)]
    return tuple(sum(part) / len(part) for part in parts)


def _plugins(terms: RunTerms) -> Iterator[tuple[str, PluginSection]]:
    yield "scorer", PluginSection(name=terms.scorer.name, settings=terms.scorer.settings)
    yield from (("scorer", PluginSection(name=name)) for name in terms.scorer.comparison)
    yield "ordering", terms.training.ordering
    yield "objective", terms.training.objective


def _rounds(terms: RunTerms) -> int:
    warm_up = terms.warm_up.rounds if terms.run.trajectory == "global" else 0
    return warm_up + terms.training.rounds * len(terms.study.arms)


def _steps(terms: RunTerms) -> int:
    warm_up = terms.warm_up.rounds * terms.warm_up.steps
    training = terms.training.rounds * terms.training.steps * len(terms.study.arms)
    return (warm_up if terms.run.trajectory == "global" else 0) + training


def _in_plan(request: TrainRequest, terms: RunTerms) -> None:
    """A training request must be one of those that the agreed terms announce."""
    warm_up = request.header.phase == Phase.WARM_UP
    section = terms.warm_up if warm_up else terms.training
    number, last = request.header.round, section.rounds
    _agreed("round", number, 1 <= number <= last, f"1 to {last}")
    _agreed("total_steps", request.total_steps, request.total_steps == last * section.steps,
            last * section.steps)  # fmt: skip
    offset = (number - 1) * section.steps
    _agreed("step_offset", request.step_offset, request.step_offset == offset, offset)
    arms = ("",) if warm_up else terms.study.arms
    _agreed("arm", request.header.arm, request.header.arm in arms, f"one of {arms}")


def _agreed(name: str, came: object, allowed: bool, expected: object) -> None:  # noqa: FBT001 - local helper
    if not allowed:
        message = f"{name} is {came}, the terms that this site joined under say {expected}"
        raise RefusalError(message, clause="terms")
