"""Count the samples and draws behind each release, for ``policy.smallest_group``."""

import math
from itertools import pairwise

from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.client.training.round_plan import effective_samples
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.protocol.replies import TrainedAdapter
from fedwinnow.curation.scores.bounded_mean import grid_step

MOST_LOSS = math.log(2**18)
"""Loss of a uniform guess among as many tokens as the largest vocabularies hold, nats."""


def pool_losses(losses: tuple[float, ...], steps: int) -> tuple[float, ...]:
    """Average each ``steps`` losses in a row; a shorter rest joins the last mean or is withheld."""
    number = len(losses) // steps
    bounds = [*(i * steps for i in range(number)), len(losses)]
    parts = [losses[a:b] for a, b in pairwise(bounds)]
    return tuple(sum(part) / len(part) for part in parts)


def round_losses(losses: tuple[float, ...], draws: int) -> tuple[float, ...]:
    """Round means over at least ``draws`` losses to a grid of which one draw is about one step."""
    step = grid_step(MOST_LOSS, draws)
    return tuple(round(loss / step) * step for loss in losses)


def warms_up_on_anchors(run: SiteRun) -> bool:
    """Return whether warm-up trains on public anchors alone, so reveals nothing of the silo."""
    return run.terms.warm_up.data == "anchors"


def train_draws(run: SiteRun) -> int:
    """Return the number of samples that the steps of one training round draw."""
    training = run.terms.training
    return training.steps * training.batch_size * training.accumulation


def warm_up_draws(run: SiteRun) -> int:
    """Return the mean number of private samples among the draws of one warm-up round."""
    training, private = run.terms.training, len(run.data.samples)
    drawn = run.terms.warm_up.steps * training.batch_size * training.accumulation
    return drawn * private // (private + len(run.data.rows.samples))


def samples_behind(reply: TrainedAdapter, run: SiteRun) -> int:
    """Return the exact number of private samples behind an adapter; the reply rounds it.

    At most the number that the round's steps can draw, whatever was kept.
    """
    if reply.header.phase == Phase.WARM_UP:
        return min(len(run.data.samples), warm_up_draws(run))
    return min(effective_samples(run, reply.header), train_draws(run))
