"""What is wrong with a reply on its own, before replies of several sites are compared.

A site's words are not trusted: a count below 0, a loss that is no number, a histogram of the wrong
length or an adapter of other matrices would otherwise stop the run or bend it.
"""

import math
from collections.abc import Iterable

import numpy as np

from fedwinnow.curation.adapters import check_adapter, check_compatible
from fedwinnow.curation.config import RunConfig
from fedwinnow.curation.errors import CurationError
from fedwinnow.curation.messages import (
    Joined,
    KeptReply,
    MetricsReply,
    Phase,
    PublicSignals,
    Receipt,
    Reply,
    SummaryReply,
    TrainedAdapter,
)
from fedwinnow.server.state import RunState


def expected_reply(phase: Phase) -> type:
    """The class of a phase's replies."""
    return {
        Phase.JOIN: Joined,
        Phase.PROBE: PublicSignals,
        Phase.MEASURE: PublicSignals,
        Phase.WARM_UP: TrainedAdapter,
        Phase.TRAIN: TrainedAdapter,
        Phase.SCORE: SummaryReply,
        Phase.SELECT: KeptReply,
        Phase.EVALUATE: MetricsReply,
        Phase.CLOSE: Receipt,
    }[phase]


def fault(site: str, reply: Reply, state: RunState, config: RunConfig) -> str:
    """Why a reply cannot be used, in plain words; "" where it can."""
    phase = Phase(state.phase)
    if not isinstance(reply, expected_reply(phase)):
        return f"answered with a {type(reply).__name__}, not a {expected_reply(phase).__name__}"
    if reply.site != site:
        return f"speaks as site {reply.site!r}"
    if phase is not Phase.JOIN and site not in state.sites:
        return "is no member of this run"
    try:
        return _content(site, reply, state, config)
    except CurationError as error:
        return str(error)


def _content(site: str, reply: Reply, state: RunState, config: RunConfig) -> str:
    if isinstance(reply, Joined):
        check_adapter(reply.adapter, site=site)
        card = reply.card
        whole = card.site == site and card.samples > 0
        return "" if whole else f"its card names site {card.site!r} with {card.samples} samples"
    if isinstance(reply, TrainedAdapter):
        return _trained(site, reply, state)
    if isinstance(reply, SummaryReply):
        return _summary(reply)
    if isinstance(reply, KeptReply):
        whole = set(reply.kept) == set(config.study.arms) and min(reply.kept.values()) >= 0
        return "" if whole else f"expected a kept count of each arm, got {dict(reply.kept)}"
    if isinstance(reply, MetricsReply):
        own = reply.own
        whole = own.samples >= 0 and math.isfinite(own.loss_sum)
        return "" if whole else f"its own loss is {own.loss_sum} over {own.samples} samples"
    return ""


def _trained(site: str, reply: TrainedAdapter, state: RunState) -> str:
    if reply.samples < 0 or (reply.adapter is None) != (reply.samples == 0):
        what = "no adapter" if reply.adapter is None else "an adapter"
        return f"sent {what} for {reply.samples} samples"
    if not _finite((reply.learning_rate, *reply.losses)):
        return "a loss or its learning rate is infinite; lower training.learning_rate"
    if reply.adapter is not None and state.adapter is not None:
        check_compatible({site: reply.adapter}, state.adapter)
    return ""


def _summary(reply: SummaryReply) -> str:
    edges, counts = reply.summary.edges, reply.summary.counts
    if len(counts) != len(edges) + 1 or len(edges) == 0 or bool((np.diff(edges) <= 0).any()):
        return f"its histogram has {len(counts)} cells on {len(edges)} edges"
    numbers = (*reply.forecast.values(), reply.summary.largest_merged)
    if bool((counts < 0).any()) or reply.unscored < 0 or not _finite(numbers):
        return "its histogram holds a count below 0, or its forecast is no number"
    return ""


def _finite(numbers: Iterable[float]) -> bool:
    return all(map(math.isfinite, numbers))
