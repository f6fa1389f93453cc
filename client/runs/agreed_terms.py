"""Read what a run's agreed terms announce: plug-ins, rounds, steps, each request's place.

A run is a list of *places* (phase, round, arm) that its terms fix in advance. The site agreed to no
request outside that list, and to no kind of request under another's phase.
"""

import inspect
from collections.abc import Iterator, Mapping

from fedwinnow.client.runs.told_text import ToldText, tell
from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.errors import RefusalError
from fedwinnow.curation.protocol.messages import Request
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.protocol.requests import (
    ClusterRequest,
    EvaluateRequest,
    JudgeRequest,
    MeasureRequest,
    QuotaRequest,
    SelectRequest,
    TrainRequest,
)
from fedwinnow.strategies.interfaces.ordering import StagedOrdering
from fedwinnow.strategies.registry import Kind, build, plugin_factory
from fedwinnow.strategies.run_plugins import RunPlugins


def named_plugins(terms: RunTerms) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield every plug-in that a site runs, as "kind:name", with its non-default settings.

    The scorer that another plug-in's setting names is included.

    Raises:
        PluginError: a plug-in is unknown here.
    """
    chosen: list[tuple[Kind, str, Mapping[str, object]]] = [
        ("scorer", terms.scorer.name, terms.scorer.settings),
        *(("scorer", name, {}) for name in terms.scorer.comparison),
        ("ordering", terms.training.ordering.name, terms.training.ordering.settings),
        ("objective", terms.training.objective.name, terms.training.objective.settings),
    ]
    for kind, name, settings in chosen:
        known = inspect.signature(plugin_factory(kind, name)).parameters if settings else {}
        changed = {
            key: value
            for key, value in settings.items()
            if key not in known or known[key].default != value
        }
        yield f"{kind}:{name}", changed
    section = terms.training.ordering
    ordering = build("ordering", section.name, section.settings)
    if isinstance(ordering, StagedOrdering):  # ranks by a scorer that a setting names
        yield f"scorer:{ordering.scorer}", {}


def warm_up_rounds(terms: RunTerms) -> int:
    """Return the warm-up rounds; without a trajectory there are none, whatever the section says."""
    return terms.warm_up.rounds if terms.run.trajectory == "global" else 0


def cluster_exchanges(terms: RunTerms) -> int:
    """Return the number of cluster exchanges of a run."""
    return terms.clusters.iterations if terms.clusters.count else 0


def training_rounds(terms: RunTerms) -> int:
    """Return the training rounds of a run: warm-up and every arm."""
    return warm_up_rounds(terms) + terms.training.rounds * len(terms.study.arms)


def optimizer_steps(terms: RunTerms) -> int:
    """Return the optimizer steps of a run: warm-up and every arm."""
    training = terms.training.rounds * terms.training.steps * len(terms.study.arms)
    return warm_up_rounds(terms) * terms.warm_up.steps + training


def why_adapters_are_shared(terms: RunTerms, plugins: RunPlugins) -> str:
    """Return what makes members' adapters travel to the other members; "" for nothing."""
    if terms.guards.anchor_margin > 0:
        return "guards.anchor_margin"
    return plugins.reviews_reader


def check_place(request: Request, terms: RunTerms, plugins: RunPlugins) -> None:
    """Refuse a request whose place the agreed terms do not announce.

    Raises:
        RefusalError: clause "terms"; the message names the field.
    """
    header, arms = request.header, terms.study.arms
    number, arm, last = header.round, header.arm, 0
    allowed: tuple[str, ...] = ("",)
    if isinstance(request, TrainRequest):
        warm_up = header.phase == Phase.WARM_UP
        section = terms.warm_up if warm_up else terms.training
        last = warm_up_rounds(terms) if warm_up else terms.training.rounds
        allowed = ("",) if warm_up else arms
        _agreed(tell("round"), number, 1 <= number <= last, f"1 to {last}")
        total, offset = last * section.steps, (number - 1) * section.steps
        _agreed(tell("total_steps"), request.total_steps, request.total_steps == total, total)
        _agreed(tell("step_offset"), request.step_offset, request.step_offset == offset, offset)
    elif isinstance(request, MeasureRequest):
        last = warm_up_rounds(terms)
        place = request.checkpoint
        _agreed(tell("checkpoint"), place, 1 <= place <= last, f"1 to {last}")
        _agreed(tell("round"), number, number == request.checkpoint, request.checkpoint)
        due = number == last and plugins.reviews_reader != ""
        _agreed(tell("reviewers"), len(request.reviewers), due or not request.reviewers, "none")
    elif isinstance(request, EvaluateRequest):
        last, most = terms.training.rounds, terms.evaluation.generate
        allowed = arms if number > 0 else ("",)
        _agreed(tell("round"), number, 0 <= number <= last, f"0 to {last}")
        _agreed(tell("generate"), request.generate, request.generate <= most, f"at most {most}")
    elif isinstance(request, JudgeRequest):
        last = terms.training.rounds if terms.guards.anchor_margin > 0 else 0
        allowed = arms
        _agreed(tell("round"), number, 1 <= number <= last, f"1 to {last}")
    elif isinstance(request, ClusterRequest):
        last, most = cluster_exchanges(terms), terms.clusters.count
        came = len(request.centroids)
        _agreed(tell("round"), number, 1 <= number <= last, f"1 to {last}")
        _agreed(tell("centroids"), came, 1 <= came <= most, f"1 to {most}")
    else:
        _agreed(tell("round"), number, number == 0, 0)
    if isinstance(request, SelectRequest | QuotaRequest):
        kind = QuotaRequest if terms.clusters.count else SelectRequest
        came_as = type(request).__name__
        _agreed(tell("the selection's request"), came_as, isinstance(request, kind), kind.__name__)
    _agreed(tell("arm"), arm, arm in allowed, f"one of {allowed}")


def _agreed(name: ToldText, came: object, holds: bool, expected: object) -> None:  # noqa: FBT001 - local helper
    if not holds:
        told = tell("{name} is not what the terms that this site joined under say", name=name)
        message = f"{name} is {came}, the terms that this site joined under say {expected}"
        raise RefusalError(message, clause="terms", told=told)
