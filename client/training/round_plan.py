"""Plan a training round: its samples, their order and how much each counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fedwinnow.client.data.site_data import warm_up_samples
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.agreed_terms import warm_up_rounds
from fedwinnow.client.runs.site_run import SiteRun, take_rows
from fedwinnow.client.training.curriculum_stages import (
    Places,
    Stage,
    choose_stage_samples,
    stage_of,
    stage_scoring,
)
from fedwinnow.client.training.distinct_steps import StepGroup
from fedwinnow.curation.datatypes import Sample, Scores
from fedwinnow.curation.errors import PluginError
from fedwinnow.curation.protocol.requests import TrainRequest
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.strategies.interfaces.objective import Objective
from fedwinnow.strategies.interfaces.ordering import Order, Ordering, StagedOrdering
from fedwinnow.strategies.maths.order_schedule import choose_schedule
from fedwinnow.strategies.registry import build

Weights = Float[np.ndarray, " samples"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """Samples, order, weights and steps of one round."""

    samples: Sequence[Sample]
    kept: int
    """Samples that the arm keeps; a stage trains on a part, the released count stays the same."""
    order: Order
    objective: Objective
    weights: Weights | None
    """How much each sample counts; None where all count the same."""
    first_step: int
    """Optimizer step of the plan with which these samples' passes begin."""
    seed: int
    steps: int
    learning_rate: float
    schedule: str
    make_up: StepGroup | None = None
    """Make-up of each step, where the site's policy asks for groups of distinct samples."""
    fills_steps: bool = True
    """Whether the samples fill a step; where they do not, the site does not train."""


def plan_warm_up(run: SiteRun, request: TrainRequest) -> RoundPlan:
    """Plan a warm-up round: all samples, seeded by site, or public anchors, alike at every site."""
    terms, phase = run.terms, request.header.phase
    if terms.warm_up.data == "anchors":  # public, so every site trains the same adapter
        samples: Sequence[Sample] = run.data.split.reference
        seed, make_up = derive_seed(terms.run.seed, phase), None
    else:
        samples = warm_up_samples(run.data, run.site, request.sites, terms.run.seed)
        seed = derive_seed(terms.run.seed, run.site, phase)
        private = len(run.data.samples)
        make_up = step_group(run, private, len(samples) - private)
    ordering: Ordering = build("ordering", "shuffled", {})
    return RoundPlan(
        samples=samples,
        kept=len(samples),
        order=ordering(np.zeros(len(samples)), derive_seed(seed, "order"), samples),
        objective=build("objective", "sft", {}),
        weights=None,
        first_step=0,
        seed=seed,
        steps=terms.warm_up.steps,
        learning_rate=terms.warm_up.learning_rate,
        schedule="constant",
        make_up=make_up,
        fills_steps=_fills(run, make_up, len(run.data.samples)),
    )


def plan_arm_round(run: SiteRun, request: TrainRequest, adapter: str) -> RoundPlan:
    """Plan an arm's round: kept samples or a stage of them; one seed over all rounds of either."""
    section, header = run.terms.training, request.header
    seed = derive_seed(run.terms.run.seed, run.site, header.phase)
    ordering, staged = run.plugins.ordering, run.plugins.staged_ordering
    places, scores = kept_samples(run, header.arm)
    kept, first_round, stages = len(places), 1, 1
    weights = sample_weights(run, header.arm, places, scores)
    if staged is not None and kept > 0:
        stage = stage_at(run, staged, header.round, kept)
        score = stage_scoring(run, adapter)
        everything, (places, scores) = (
            places,
            choose_stage_samples(run, header.arm, stage, places, score),
        )
        if weights is not None:
            weights = weights[np.searchsorted(everything, places)]
        seed, first_round = derive_seed(seed, "stage", stage.number), stage.first_round
        stages = stage.count
    samples = run.data.samples.subset(places.tolist())
    order = ordering(scores, derive_seed(seed, "order"), samples)
    make_up = step_group(run, len(samples), 0)
    return RoundPlan(
        samples=samples,
        kept=kept,
        order=order,
        objective=run.plugins.objective,
        weights=weights,
        first_step=(first_round - 1) * section.steps,
        seed=seed,
        steps=section.steps,
        learning_rate=section.learning_rate,
        schedule=choose_schedule(section.schedule, order.schedule_hint),
        make_up=make_up,
        fills_steps=_fills(run, make_up, kept, stages),
    )


def step_group(run: SiteRun, private: int, public: int) -> StepGroup | None:
    """Return the make-up of a step; None where the site asks for no groups, as in simulations."""
    training, group = run.terms.training, run.config.policy.smallest_group
    if run.config.simulation or group == 1:
        return None
    draws = training.batch_size * training.accumulation
    return StepGroup.of(group=group, private=private, public=public, draws=draws)


def _fills(run: SiteRun, make_up: StepGroup | None, private: int, stages: int = 1) -> bool:
    """Return whether samples fill a step, by the number that is told of them.

    What a site tells rounded must not be told exactly by whether it trains: so this follows from
    the rounded count alone, taken as low as it can mean.
    """
    if make_up is None:
        return True
    step, told = run.config.site.round_counts_to, run.rounded(private)
    least = told - step // 2 if step == 1 or told > step else 0
    return least // stages >= make_up.private_draws


def kept_samples(run: SiteRun, arm: str) -> tuple[Places, Scores]:
    """Return the positions of an arm's kept samples, with its scores."""
    kept = np.flatnonzero(tables.read_kept(run.files.selection, arm))
    _, _, scores = tables.read_scores(run.files.scores, run.terms.scorer.name)
    return kept, scores[kept]


def stage_at(run: SiteRun, ordering: StagedOrdering, number: int, samples: int) -> Stage:
    """Return the stage of a training round at this site."""
    rounds = run.terms.training.rounds
    return stage_of(number, rounds=rounds, stages=ordering.stages, samples=samples)


def sample_weights(run: SiteRun, arm: str, places: Places, scores: Scores) -> Weights | None:
    """Return how much each kept sample counts, from the site's own signals and scores.

    Weights are a soft selection: the other arms of a study, which know no score, count every sample
    the same.

    Raises:
        PluginError: the objective gave no number of at least 0 for each sample.
    """
    objective = run.plugins.weighing_objective
    if arm != "curated" or objective is None or len(places) == 0:
        return None
    trajectory = tuple(
        take_rows(tables.read_signals(run.files.signals(checkpoint)), places.tolist())
        for checkpoint in range(warm_up_rounds(run.terms) + 1)
    )
    weights = objective.weights(scores, trajectory)
    if weights.shape != places.shape or not (np.isfinite(weights) & (weights >= 0)).all():
        message = (
            f"objective {run.terms.training.objective.name!r}: expected {len(places)} weights of "
            f"at least 0, got {weights.shape[0]} that are not; repair the objective plug-in"
        )
        raise PluginError(message)
    return weights
