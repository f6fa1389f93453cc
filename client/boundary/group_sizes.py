"""Count the private samples of a step, for ``policy.smallest_group``."""

import math

from fedwinnow.client.runs import tables
from fedwinnow.client.runs.agreed_terms import warm_up_rounds
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.client.training.round_plan import stage_at
from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.protocol.replies import TrainedAdapter
from fedwinnow.curation.scores.bounded_mean import grid_step

MOST_LOSS = math.log(2**18)
"""Loss of a uniform guess among as many tokens as the largest vocabularies hold, nats."""


def round_losses(losses: tuple[float, ...], draws: int) -> tuple[float, ...]:
    """Round means over at least ``draws`` losses to a grid of which one draw is about one step."""
    step = grid_step(MOST_LOSS, draws)
    return tuple(round(loss / step) * step for loss in losses)


def warms_up_on_anchors(run: SiteRun) -> bool:
    """Return whether warm-up trains on public anchors alone, so reveals nothing of the silo."""
    return run.terms.warm_up.data == "anchors"


def trains_on_private(terms: RunTerms) -> bool:
    """Return whether a run trains on private samples at all."""
    warms_up = warm_up_rounds(terms) > 0 and terms.warm_up.data == "all"
    return warms_up or terms.training.rounds > 0


def step_draws(terms: RunTerms) -> int:
    """Return the samples that an optimizer step draws."""
    return terms.training.batch_size * terms.training.accumulation


def samples_behind(reply: TrainedAdapter, run: SiteRun) -> int:
    """Return the exact number of private samples behind an adapter; the reply rounds it.

    Every step draws distinct samples of them, evenly weighted (``training/distinct_steps.py``).
    """
    if reply.header.phase == Phase.WARM_UP:
        return len(run.data.samples)
    arm, ordering = reply.header.arm, run.plugins.staged_ordering
    kept = int(tables.read_kept(run.files.selection, arm).sum())
    if ordering is None or kept == 0:
        return kept
    stage = stage_at(run, ordering, reply.header.round, kept)
    return len(tables.read_stage(run.files.stage(arm, stage.number))[0])
