"""Fold a run purely: ``initial_state``, ``next_request(state)``, ``absorb(state, replies)``.

Phases: join → probe → (warm up → measure) × T → score → (cluster × I) → select → (train, judge
where it is configured, evaluate) × R per study arm → close. Nothing here knows a transport, a clock
or a file; the same replies give the same state, bit for bit, whatever their order of arrival (sites
are taken by name).
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import canonical_json
from fedwinnow.curation.errors import (
    EmptySelectionError,
    EmptySummaryError,
    InputError,
    ProtocolError,
)
from fedwinnow.curation.model.base_change import effective_adapter
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.messages import Reply, Request
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.protocol.replies import Refusal
from fedwinnow.server.phases.cluster import start_clusters
from fedwinnow.server.phases.limits import clean_line, refusal_words
from fedwinnow.server.phases.quorum import require_quorum
from fedwinnow.server.phases.table import PHASES, why_unusable
from fedwinnow.server.phases.values import Outcome, Replies, request_adapter
from fedwinnow.server.run.advice import run_remarks
from fedwinnow.server.state import RoundRecord, RunState, required, run_config

logger = logging.getLogger(__name__)


def initial_state(config: RunConfig, run: str) -> RunState:
    """Return the state before the first request, and log warnings about the configuration.

    Args:
        config: Configuration of the run.
        run: Our run id.
    """
    for remark in run_remarks(config):
        logger.warning("%s", remark)
    return RunState(run=run, config=canonical_json(config))


def next_request(state: RunState) -> Request | None:
    """Return the request to every member now; None when the run is done."""
    phase = Phase(state.phase)
    if phase is Phase.DONE:
        return None
    return PHASES[phase].request(state, run_config(state), request_header(state))


def absorb(
    state: RunState, replies: Mapping[str, Reply], missing: Mapping[str, str] | None = None
) -> RunState:
    """Return the state after an exchange; replies that do not fit are refused by name.

    Args:
        state: State that :func:`next_request` was called with.
        replies: Site → reply, in any order.
        missing: Site → why nothing came from it.

    Raises:
        ProtocolError: fewer sites than ``run.minimum_sites`` gave a usable reply.
        EmptySelectionError: no site keeps a sample for the curated arm.
    """
    config, header = run_config(state), request_header(state)
    unheard = {site: clean_line(why) for site, why in (missing or {}).items()}
    fitting, absent = usable_replies(state, replies, header, unheard)
    needed = config.quorum.of(state.phase, config.run.minimum_sites)
    if len(fitting) < needed:
        reasons = "; ".join(f"{site}: {why}" for site, why in sorted(absent.items())) or "no reply"
        message = (
            f"phase {state.phase}: {len(fitting)} of at least {needed} sites answered ({reasons}); "
            f"mend the sites, or lower quorum.{state.phase} or run.minimum_sites"
        )
        raise ProtocolError(message)
    record = RoundRecord(phase=state.phase, round=state.round, arm=state.arm, missing=absent)
    state, record = _absorb_usable(state, config, fitting, record)
    return _advance(state, config, record)


def _absorb_usable(
    state: RunState, config: RunConfig, replies: Replies, record: RoundRecord
) -> Outcome:
    """Absorb replies; where that fails, find the site whose reply is the cause and leave it out.

    A verdict on the whole run (too few sites, nothing kept) stands. Anything else is the fault of a
    reply that passed its own check: the first site by name without which the others can be absorbed
    is missing from this exchange.
    """
    absorb_phase = PHASES[Phase(state.phase)].absorb
    try:
        return absorb_phase(state, config, replies, record)
    except (ProtocolError, EmptySelectionError, EmptySummaryError, InputError):
        raise
    except Exception as error:
        for site in sorted(replies):
            others = {name: reply for name, reply in replies.items() if name != site}
            why = f"its reply cannot be absorbed ({type(error).__name__})"
            missing = {**record.missing, site: why}
            try:
                found = absorb_phase(state, config, others, replace(record, missing=missing))
            except Exception as other:  # noqa: BLE001 - the cause is another site, or several
                logger.debug("without site %s: %s", site, type(other).__name__)
                continue
            logger.warning("site %s is missing in phase %s: %s", site, record.phase, why)
            require_quorum(others, config, record.phase, missing)
            return found
        raise


def usable_replies(
    state: RunState, replies: Mapping[str, Reply], header: Header, absent: dict[str, str]
) -> tuple[dict[str, Reply], dict[str, str]]:
    """Return the replies that answer this request, and site → why there is none from the others."""
    config, joined = run_config(state), state.joined
    fitting: dict[str, Reply] = {}
    for site, reply in sorted(replies.items()):
        if isinstance(reply, Refusal):
            absent[site] = refusal_words(reply)
        elif reply.header != header:
            wrong = [
                f"{name} is {clean_line(repr(getattr(reply.header, name)), longest=100)}, not "
                f"{getattr(header, name)!r}"
                for name in ("run", "phase", "round", "arm", "adapter", "protocol")
                if getattr(reply.header, name) != getattr(header, name)
            ]
            absent[site] = "does not match: " + ", ".join(wrong)
        elif why := why_unusable(site, reply, state, config, joined):
            absent[site] = f"is refused: {why}"
        else:
            fitting[site] = reply
    for site, why in sorted(absent.items()):
        logger.warning("site %s is missing in phase %s: %s", site, header.phase, why)
    return fitting, absent


def _advance(state: RunState, config: RunConfig, record: RoundRecord) -> RunState:  # noqa: PLR0911 - one way on a phase
    """Append the record and move to the next phase."""
    state = replace(state, records=(*state.records, record))
    phase = Phase(state.phase)
    if phase is Phase.JOIN:
        return replace(state, phase=Phase.PROBE.value)
    if phase in {Phase.PROBE, Phase.MEASURE}:
        more = config.run.trajectory == "global" and state.round < config.warm_up.rounds
        following = Phase.WARM_UP if more else Phase.SCORE
        number = state.round + 1 if more else 0
        adapter = state.adapter if more else None
        return replace(state, phase=following.value, round=number, adapter=adapter)
    if phase is Phase.WARM_UP:
        return replace(state, phase=Phase.MEASURE.value)
    if phase in {Phase.SCORE, Phase.CLUSTER}:
        return _after_score(state, config)
    if phase is Phase.SELECT:
        if config.training.rounds == 0:
            return replace(state, phase=Phase.CLOSE.value)
        return replace(state, phase=Phase.EVALUATE.value, round=0, adapter=state.initial)
    if phase in {Phase.TRAIN, Phase.JUDGE}:
        return _after_training(state, config)
    if phase is Phase.EVALUATE:
        return _after_evaluation(state, config)
    return replace(state, phase=Phase.DONE.value, round=0, arm="", adapter=None)


def _after_score(state: RunState, config: RunConfig) -> RunState:
    """Move on to the exchanges of clusters, where the run has any, and then to the selection."""
    last = config.clusters.iterations if config.clusters.count else 0
    if state.round == last:
        return replace(state, phase=Phase.SELECT.value, round=0)
    if state.round == 0:
        state = replace(state, phase=Phase.CLUSTER.value, clusters=start_clusters(state, config))
    return replace(state, round=state.round + 1)


def _after_training(state: RunState, config: RunConfig) -> RunState:
    if state.pending:
        return replace(state, phase=Phase.JUDGE.value)
    due = state.round % config.evaluation.every == 0 or state.round == config.training.rounds
    if due:
        return replace(state, phase=Phase.EVALUATE.value)
    return replace(state, phase=Phase.TRAIN.value, round=state.round + 1)


def _after_evaluation(state: RunState, config: RunConfig) -> RunState:
    if 0 < state.round < config.training.rounds:
        return replace(state, phase=Phase.TRAIN.value, round=state.round + 1)
    if state.round > 0:
        whole = effective_adapter(required(state.adapter, "adapter"), state.change)
        state = replace(state, finals={**state.finals, state.arm: whole}, change=None)
    arms = config.study.arms
    rest = arms[arms.index(state.arm) + 1 :] if state.arm in arms else arms
    for arm in rest:
        if sum(state.kept.get(arm, {}).values()) > 0:
            return replace(state, phase=Phase.TRAIN.value, round=1, arm=arm, adapter=state.initial)
        if arm == "curated":
            message = (
                f"0 samples are kept at threshold {required(state.decision, 'decision').value:.6g} "
                f"over {len(state.members)} sites; lower the threshold's setting or use threshold "
                "keep_all to see the scores"
            )
            raise EmptySelectionError(message)
        logger.warning("arm %s keeps no sample and is left out", arm)
    return replace(state, phase=Phase.CLOSE.value, round=0, arm="", adapter=state.finals["curated"])


def request_header(state: RunState) -> Header:
    """Return the header of a state's request and of every reply to it."""
    asked = request_adapter(state)
    adapter = "" if asked is None else adapter_hash(asked)
    return Header(
        run=state.run, phase=state.phase, round=state.round, arm=state.arm, adapter=adapter
    )
