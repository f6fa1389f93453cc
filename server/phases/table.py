"""Map each phase to its functions, and check each reply on its own.

Replies are not trusted: a count below 0, a loss that is no number, a histogram of the wrong length
or an adapter of other matrices would otherwise stop the run or bend its result.
"""

from collections.abc import Mapping

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.errors import CurationError
from fedwinnow.curation.protocol.exchanges import reply_class
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.server.phases import (
    close,
    cluster,
    evaluate,
    join,
    judge,
    measure,
    score,
    select,
    train,
)
from fedwinnow.server.phases.limits import clean_line
from fedwinnow.server.phases.values import ReplyContext, ServerPhase
from fedwinnow.server.state import RunState

PHASES: Mapping[Phase, ServerPhase] = {
    Phase.JOIN: join.PHASE,
    Phase.PROBE: measure.PROBE,
    Phase.WARM_UP: train.PHASE,
    Phase.MEASURE: measure.PHASE,
    Phase.SCORE: score.PHASE,
    Phase.CLUSTER: cluster.PHASE,
    Phase.SELECT: select.PHASE,
    Phase.TRAIN: train.PHASE,
    Phase.JUDGE: judge.PHASE,
    Phase.EVALUATE: evaluate.PHASE,
    Phase.CLOSE: close.PHASE,
}


def why_unusable(
    site: str, reply: Reply, state: RunState, config: RunConfig, joined: Mapping[str, int]
) -> str:
    """Return why a reply cannot be used, in plain words; "" where it can.

    Args:
        site: Site that the reply must come from.
        reply: The reply.
        state: State before the replies of this exchange.
        config: Configuration of the run.
        joined: Member → samples it joined with (:attr:`RunState.joined`), made once an exchange: a
            search among the members for each reply would grow with their square.
    """
    phase = Phase(state.phase)
    expected = reply_class(phase)
    if not isinstance(reply, expected):
        return f"answered with a {type(reply).__name__}, not a {expected.__name__}"
    if reply.site != site:
        return f"speaks as site {clean_line(repr(reply.site), longest=64)}"
    if phase is not Phase.JOIN and site not in joined:
        return "is no member of this run"
    context = ReplyContext(site=site, state=state, config=config, samples=joined.get(site, 0))
    try:
        return PHASES[phase].why_unusable(reply, context)
    except CurationError as error:
        return clean_line(str(error))
    except Exception as error:  # noqa: BLE001 - whatever a stranger's numbers do, others go on
        return f"its reply cannot be checked ({type(error).__name__})"
