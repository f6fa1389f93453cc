"""Choose curriculum stages: each takes the best remaining share of an arm, ranked by the model.

With K stages over R rounds, round r (from 0) belongs to stage ⌊r · K / R⌋; K is at most R and at
most the number n of kept samples. Stage i takes ⌊n (i + 1) / K⌋ − ⌊n i / K⌋ samples: the best of
those that no other stage took, by a scorer at the adapter that the stage begins with.
What a stage took is kept on the disk, so that every sample is in one stage, and a repeated or
resumed round trains on the same samples in the same order. Nothing of it leaves the site.

Reference:
    Y. Du et al., FedDQC, Findings of ACL 2025, section 3.3, https://arxiv.org/abs/2410.11540
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from fedwinnow.client.runs import tables
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.client.signals.collect import measure_public_rows, signal_measurer
from fedwinnow.client.signals.shards import remove_shards
from fedwinnow.curation.datatypes import Scores
from fedwinnow.curation.errors import ProtocolError
from fedwinnow.curation.signal_columns import GRADIENTS
from fedwinnow.strategies.run_plugins import unmeasured_columns

Places = Int[np.ndarray, " samples"]
"""Positions of samples in the silo's data order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Curriculum stage of a run's training rounds at one site."""

    number: int
    """From 0."""
    count: int
    """How many stages there are, at least 1."""
    first_round: int
    """First round of the stage, from 1."""

    def size(self, samples: int) -> int:
        """Return how many of ``samples`` kept samples the stage trains on."""
        return samples * (self.number + 1) // self.count - samples * self.number // self.count


def stage_of(number: int, *, rounds: int, stages: int, samples: int) -> Stage:
    """Return the stage of a round, from 1; a round beyond the last belongs to the last stage."""
    count = max(1, min(stages, rounds, samples))
    stage = (min(max(number, 1), rounds) - 1) * count // rounds
    first = -(-stage * rounds // count) + 1
    return Stage(number=stage, count=count, first_round=first)


def choose_stage_samples(
    run: SiteRun, arm: str, stage: Stage, kept: Places, score: Callable[[Places], Scores]
) -> tuple[Places, Scores]:
    """Return a stage's samples, best first, with the scores by which they were chosen.

    A sample without a score at this adapter comes after all others. A site that was absent when the
    stage began ranks at the first round of the stage that it sees.

    Args:
        run: The run at this site.
        arm: The arm whose kept samples are meant.
        stage: Which stage.
        kept: Positions of the samples that the arm keeps.
        score: Scores samples with the adapter of this round; called for those still to be taken.
    """
    own = run.files.stage(arm, stage.number)
    if not own.exists():
        taken = [tables.read_stage(file)[0] for file in run.files.all_stages(arm)]
        rest = np.setdiff1d(kept, np.concatenate([np.zeros(0, dtype=np.int64), *taken]))
        scores = score(rest)
        ranks = np.argsort(np.where(np.isnan(scores), np.inf, -scores), kind="stable")
        best = ranks[: stage.size(len(kept))]
        tables.write_stage(own, rest[best], scores[best])
    return tables.read_stage(own)


def stage_scoring(run: SiteRun, adapter: str) -> Callable[[Places], Scores]:
    """Return a function that scores samples at the loaded adapter, by one forward-only scorer.

    The scorer is fitted on the site's own measurement of the public rows at the same adapter.
    """
    scorer = run.plugins.stage_scorer
    if scorer is None:  # pragma: no cover - called only for an ordering with stages
        message = "this run's ordering has no stages"
        raise ProtocolError(message)
    columns = scorer.columns - GRADIENTS - unmeasured_columns(run.terms)
    table = signal_measurer(run, adapter, columns=columns, checkpoint=0)

    def score(places: Places) -> Scores:
        public = measure_public_rows(run, adapter, table, columns=columns, checkpoint=0)
        samples = run.data.samples.subset(places.tolist())
        mine = table(samples, f"{run.site} ranks its samples")
        remove_shards(run.files)
        return scorer.score((mine,), scorer.fit(public))

    return score
