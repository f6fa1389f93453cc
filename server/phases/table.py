"""What is wrong with a reply on its own, before replies of several sites are compared.

A site's words are not trusted: a count below 0, a loss that is no number, a histogram of the wrong
length or an adapter of other matrices would otherwise stop the run or bend it.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from fedwinnow.curation.adapters.algebra import check_adapter, check_compatible
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import CurationError
from fedwinnow.curation.protocol.messages import (
    ClusterReply,
    Joined,
    JudgedAdapters,
    KeptReply,
    MetricsReply,
    PublicSignals,
    Receipt,
    Reply,
    SummaryReply,
    TrainedAdapter,
)
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.scores.loss_clusters import BOUND
from fedwinnow.server.state import RunState, given


def expected_reply(phase: Phase) -> type:
    """The class of a phase's replies."""
    return {
        Phase.JOIN: Joined,
        Phase.PROBE: PublicSignals,
        Phase.MEASURE: PublicSignals,
        Phase.WARM_UP: TrainedAdapter,
        Phase.TRAIN: TrainedAdapter,
        Phase.JUDGE: JudgedAdapters,
        Phase.SCORE: SummaryReply,
        Phase.CLUSTER: ClusterReply,
        Phase.SELECT: KeptReply,
        Phase.EVALUATE: MetricsReply,
        Phase.CLOSE: Receipt,
    }[phase]


def fault(
    site: str, reply: Reply, state: RunState, config: RunConfig, joined: Mapping[str, int]
) -> str:
    """Why a reply cannot be used, in plain words; "" where it can.

    Args:
        site: Whose it should be.
        reply: What came.
        state: Before the replies of this exchange.
        config: Of the run.
        joined: Member → samples it joined with (:attr:`RunState.joined`), made once an exchange: a
            search among the members for each reply would grow with their square.
    """
    phase = Phase(state.phase)
    if not isinstance(reply, expected_reply(phase)):
        return f"answered with a {type(reply).__name__}, not a {expected_reply(phase).__name__}"
    if reply.site != site:
        return f"speaks as site {reply.site!r}"
    if phase is not Phase.JOIN and site not in joined:
        return "is no member of this run"
    try:
        return _content(site, reply, state, config, joined)
    except CurationError as error:
        return str(error)


def _content(  # noqa: PLR0911 - one check a kind
    site: str, reply: Reply, state: RunState, config: RunConfig, joined: Mapping[str, int]
) -> str:
    if isinstance(reply, Joined):
        return _joined(site, reply)
    if isinstance(reply, PublicSignals):
        return _public(reply, state)
    if isinstance(reply, TrainedAdapter):
        return _trained(reply, state, config, joined[site])
    if isinstance(reply, SummaryReply):
        return _summary(reply)
    if isinstance(reply, ClusterReply):
        return _clustered(reply, state, joined[site])
    if isinstance(reply, KeptReply):
        whole = set(reply.kept) == set(config.study.arms) and min(reply.kept.values()) >= 0
        if not whole:
            return f"expected a kept count of each arm, got {dict(reply.kept)}"
        return _too_many(max(reply.kept.values()), joined[site])
    if isinstance(reply, MetricsReply):
        return _metrics(reply, config)
    if isinstance(reply, JudgedAdapters):
        return _judged(site, reply, state)
    return ""


def _joined(site: str, reply: Joined) -> str:
    check_adapter(reply.adapter, site=site)
    card = reply.card
    if card.site != site or card.samples <= 0:
        return f"its card names site {card.site!r} with {card.samples} samples"
    if card.header != reply.header:
        return "its card belongs to another message"
    return ""


def _public(reply: PublicSignals, state: RunState) -> str:
    """Rows that belong together, for this checkpoint; whether they agree is seen later."""
    table, rows = reply.table, len(reply.table.ids)
    lengths = {len(reply.kinds), len(reply.parents), len(table.domains), len(table.status)}
    lengths |= {len(values) for values in table.columns.values()}
    if rows == 0 or lengths != {rows}:
        return f"its public rows do not belong together: {rows} ids, other lengths {lengths}"
    k = len(table.references)
    square = table.reference_gram.shape in {(k, k), (0, 0)}  # none where no gradient is measured
    if not square or any(v.ndim == 2 and v.shape[1] != k for v in table.columns.values()):  # noqa: PLR2004 - rows and references
        return f"its columns do not fit its {k} references"
    if table.checkpoint != state.round:
        return f"its rows are of checkpoint {table.checkpoint}, not {state.round}"
    if not all(_whole(v) for v in (*table.columns.values(), table.reference_gram)):
        return "a public row holds a NaN or an infinity"
    return ""


def _trained(reply: TrainedAdapter, state: RunState, config: RunConfig, most: int) -> str:
    if reply.samples < 0 or (reply.adapter is None) != (reply.samples == 0):
        what = "no adapter" if reply.adapter is None else "an adapter"
        return f"sent {what} for {reply.samples} samples"
    if not _finite((reply.learning_rate, *reply.losses)) or reply.learning_rate < 0:
        return "a loss or its learning rate is infinite; lower training.learning_rate"
    warm_up = state.phase == Phase.WARM_UP.value
    steps = (config.warm_up if warm_up else config.training).steps
    if len(reply.losses) > steps:
        return f"it sent {len(reply.losses)} losses for a round of {steps} steps"
    if not warm_up and (why := _too_many(reply.samples, most)):
        return why
    return _factors(reply.site, reply, given(state.adapter, "adapter"))


def _factors(site: str, reply: TrainedAdapter, sent: Adapter) -> str:
    """Adapter and gradient belong to the matrices that were sent, at no higher rank."""
    ranks = {name: len(a) for name, a in sent.a.items()}
    if reply.gradient is not None:
        check_compatible({site: reply.gradient}, sent)
        other = [name for name, a in reply.gradient.a.items() if len(a) != ranks[name]]
        if other:
            return f"its gradient has another rank than was sent in {other[0]}"
    if reply.adapter is None:
        return ""
    check_compatible({site: reply.adapter}, sent)
    higher = [name for name, a in reply.adapter.a.items() if len(a) > ranks[name]]
    return (
        f"its rank in {higher[0]} is above the {ranks[higher[0]]} that was sent" if higher else ""
    )


def _too_many(samples: int, most: int) -> str:
    """A site keeps, and trains on, no more than it joined with: its weight rests on it."""
    return f"it speaks of {samples} samples, but joined with {most}" if samples > most else ""


def _summary(reply: SummaryReply) -> str:
    edges, counts = reply.summary.edges, reply.summary.counts
    if len(counts) != len(edges) + 1 or len(edges) == 0 or not bool((np.diff(edges) > 0).all()):
        return f"its histogram has {len(counts)} cells on {len(edges)} edges"
    numbers = (*reply.forecast.values(), reply.summary.largest_merged)
    if not bool((counts >= 0).all()) or reply.unscored < 0 or not _finite(numbers):
        return "its histogram holds a count below 0, or its forecast is no number"
    if not (_whole(counts) and _whole(edges) and _whole(reply.public_scores)):
        return "a cell, an edge or a public score is a NaN or an infinity"
    return ""


def _clustered(reply: ClusterReply, state: RunState, joined: int) -> str:
    """Counts and sums of this run's clusters, such as standardised losses can add up to."""
    counts, sums = reply.counts, reply.sums
    shape = given(state.clusters, "clusters").centroids.shape
    if (len(counts), *sums.shape[1:]) != shape or len(sums) != len(counts):
        return f"it tells {len(counts)} counts and sums of shape {sums.shape}, not of {shape}"
    if min(counts) < 0 or not _whole(sums):
        return "a count of its clusters is below 0, or a sum is a NaN or an infinity"
    if why := _too_many(sum(counts), joined):
        return why
    most = np.array(counts, dtype=np.float64)[:, None] * BOUND * (1 + 1e-9)
    if bool((np.abs(sums) > most).any()):
        return f"a sum of its clusters is beyond {BOUND:g} spreads times their count"
    return ""


def _judged(site: str, reply: JudgedAdapters, state: RunState) -> str:
    """One loss an anchor for each candidate but its own, none of them below 0."""
    expected, number = set(state.pending) - {site}, len(reply.before)
    if set(reply.losses) != expected:
        return f"it judges {sorted(reply.losses)}, not {sorted(expected)}"
    if len(reply.domains) != number:
        return f"it names {len(reply.domains)} domains for {number} anchors"
    for losses in (reply.before, *reply.losses.values()):
        if len(losses) != number or number == 0 or not _whole(losses) or bool((losses < 0).any()):
            return "a loss that it measured is below 0 or no number, or one is missing"
    return ""


def _metrics(reply: MetricsReply, config: RunConfig) -> str:
    own, losses = reply.own, reply.public_losses
    if own.samples < 0 or not math.isfinite(own.loss_sum) or own.loss_sum < 0:
        return f"its own loss is {own.loss_sum} over {own.samples} samples"
    if not _whole(losses) or bool((losses < 0).any()):
        return "a public loss is below 0 or no number"
    shown = {len(reply.prompts), len(reply.references), len(reply.generations)}
    if len(shown) != 1 or max(shown) > config.evaluation.generate:
        return f"its answers to public prompts do not belong together: {sorted(shown)} of them"
    return ""


def _finite(numbers: Iterable[float]) -> bool:
    return all(map(math.isfinite, numbers))


def _whole(array: np.ndarray) -> bool:
    """No NaN and no infinity: the wire refuses them too, where there is one."""
    return bool(np.isfinite(array).all())
